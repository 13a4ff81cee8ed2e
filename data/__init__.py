"""The toy set (`data.toy`), your own pictures (`data.folder`), and the batches made from either."""
from dataclasses import dataclass

import torch

DESCRIBE = "describe the image"  # the instruction of most examples, and the default prompt
PADDINGS = ("random", "none")  # of the responses, in the diffusion phase


@dataclass
class Split:
    """Examples of one side of the train / held-out split."""
    images: torch.Tensor  # (N, 3, H, H) uint8
    prompts: list         # N strings
    texts: list           # N strings: the responses to learn
    scenes: list = None   # N toy scenes, None for your own pictures


def pad_prompts(prompts, tokenizer, length):
    """Strings -> ids (N, length), padded with EOS on the left so that every prompt ends at the same
    position."""
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    return torch.tensor([[tokenizer.eos_id] * (length - len(i)) + i for i in ids])


def pad_responses(texts, tokenizer, window):
    """Strings -> ids (N, window), filled with at least one EOS, and each response's length with one
    EOS (N,)."""
    ids = [tokenizer.encode(text) for text in texts]
    rows = torch.tensor([i + [tokenizer.eos_id] * (window - len(i)) for i in ids])
    return rows, torch.tensor([len(i) + 1 for i in ids])


class Batches:
    """batches(step, phase) -> images (B, 3, H, H) uint8, prompt (B, P), response (B, W), on the
    device.

    For given data a pure function of (seed, step, phase): nothing to save or restore when a run is
    resumed. An epoch shows no picture twice and leaves out the last, partial batch. The whole set
    stays on the device; indices and window lengths are drawn on the CPU, so that CUDA never has to
    be waited for."""

    def __init__(self, split, tokenizer, config, batch_size, seed, device, padding="random"):
        """`padding`: in the diffusion phase a batch's window is filled with EOS to a "random"
        length, or ("none") is just as long as its longest response and one EOS."""
        self.images = split.images.to(device)
        self.prompts = pad_prompts(split.prompts, tokenizer, config.prompt_tokens).to(device)
        responses, self.lengths = pad_responses(split.texts, tokenizer, config.window)
        self.responses = responses.to(device)
        self.batch_size = min(batch_size, len(split.texts))
        self.window, self.seed, self.device, self.padding = config.window, seed, device, padding
        self.epoch = None

    def __call__(self, step, phase):
        per_epoch = len(self.lengths) // self.batch_size
        epoch, at = divmod(step, per_epoch)
        if epoch != self.epoch:
            shuffle = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self.epoch, self.order = epoch, torch.randperm(len(self.lengths), generator=shuffle)
            self.order_on_device = self.order.to(self.device)
        here = slice(at * self.batch_size, (at + 1) * self.batch_size)
        W = longest = int(self.lengths[self.order[here]].max())
        # Diffusion learns the padding, too; the AR loss ends at the first EOS: it would be waste.
        if phase == "diffusion" and self.padding == "random":
            generator = torch.Generator().manual_seed(self.seed * 1_000_033 + step)
            W = int(torch.randint(longest, self.window + 1, (), generator=generator))
        chosen = self.order_on_device[here]
        return self.images[chosen], self.prompts[chosen], self.responses[chosen, :W]
