"""What a training run is made of: its data, the precision of its products, its optimizers."""
import statistics
from dataclasses import replace
from typing import NamedTuple

import torch

from data import Split, folder, toy
from lab.checkpoint import our_tokenizer
from mini_dimple import Config

Tokenizer = our_tokenizer()
HELD_OUT_SCENES = 1000  # of the toy set, that a run is evaluated on


# ---------------------------------------------------------------- data

class Data(NamedTuple):
    """What a run learns from and is evaluated on."""
    train: Split
    held_out: Split
    tokenizer: Tokenizer
    config: Config
    origin: dict  # what a checkpoint says of the data


def prepare(settings):
    """train.py's settings -> Data. Raises ValueError for a bad --data folder."""
    preset, shape, n = settings["preset"], settings["config"], settings["evaluate"]
    image_px, window = shape.get("image_px", Config.image_px), shape.get("window", Config.window)
    if settings["data"]:
        of_toy = {}
        (train, train_lines), (test, test_lines) = folder.read(
            settings["data"], image_px, settings["holdout"])
        tokenizer = tokenizer_of(settings, train)
        for split, lines in ((train, train_lines), (test, test_lines)):
            if split:
                folder.check_lengths(split, lines, tokenizer, window,
                                     shape.get("prompt_tokens", 64))
        if test is None:
            if n != 0:
                print("no picture is held out: the figures will be of the training pictures")
            test = train
        prompts = train.prompts + test.prompts
        test = replace(test, images=test.images[:n], prompts=test.prompts[:n], texts=test.texts[:n])
    else:
        of_toy = {name: settings[name] for name in ("wording", "order")}
        board = toy.of(dict(trained_on=preset, **of_toy))
        train = toy.examples(board, settings["examples"], settings["seed"], held_out=False)
        test = toy.examples(board, HELD_OUT_SCENES if n is None else n, 0, held_out=True,
                            instruction=toy.DESCRIBE)
        tokenizer = tokenizer_of(settings, train)
        prompts = [toy.DESCRIBE, toy.COUNT]
        longest = max(len(tokenizer.encode(text)) for text in train.texts + test.texts)
        if longest >= window:
            raise ValueError(f"--examples {settings['examples']}: too few to learn the toy's words "
                             f"from; its captions come to {longest} tokens, and {window - 1} fit")
    found = dict(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id,
                 mask_id=tokenizer.mask_id,
                 prompt_tokens=max(len(tokenizer.encode(prompt)) for prompt in prompts))
    origin = dict(trained_on="pictures" if settings["data"] else preset,
                  prompt=statistics.mode(train.prompts), **of_toy)
    return Data(train, test, tokenizer, Config(**found | shape), origin)


def tokenizer_of(settings, split):
    """That of the --ar-phase, else one trained on the examples."""
    if settings["merges"] is not None:
        return Tokenizer(settings["merges"])
    return Tokenizer.train(split.texts + split.prompts)


# ---------------------------------------------------------------- device, precision

def device_name(device):
    return torch.cuda.get_device_name() if device.type == "cuda" else device.type


def low_precision(device):
    """What matrices are multiplied in where that pays: bf16 on a CUDA device that computes it
    natively, else float32.

    Elsewhere it is emulated (a T4, most CPUs; on these a product takes a hundred times as long or
    more), or gains nothing here (CPUs that have it)."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def autocast(device):
    """bf16 where `low_precision` says so; float32 elsewhere."""
    dtype = low_precision(device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


# ---------------------------------------------------------------- optimizers

def orthogonalise(matrices, dtype):
    """The orthogonal factor, roughly, of each matrix (n, rows, columns): five Newton-Schulz steps,
    computed in `dtype`.

    Singular values end between about 0.7 and 1.2. Coefficients: K. Jordan,
    https://kellerjordan.github.io/posts/muon."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(dtype)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is orthogonalised, for matrices. As `torch.optim.Muon` without
    weight decay, but that one computes in bf16 everywhere, and matrix by matrix; here the matrices
    of one shape are one stack."""

    def __init__(self, matrices, lr, momentum):
        shapes = {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        super().__init__([dict(params=alike) for alike in shapes.values()],
                         dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        """Every matrix needs its gradient."""
        for group in self.param_groups:
            alike, momentum = group["params"], group["momentum"]
            gradient = torch.stack([matrix.grad for matrix in alike])  # (n, rows, columns)
            state = self.state[alike[0]]  # one average for all of the shape, kept with the first
            if not state:
                state["average"] = torch.zeros_like(gradient)
            average = state["average"].lerp_(gradient, 1 - momentum)
            ahead = gradient.lerp(average, momentum)  # Nesterov's
            update = orthogonalise(ahead, low_precision(gradient.device)).to(gradient.dtype)
            rate = group["lr"] * max(1, gradient.shape[1] / gradient.shape[2]) ** 0.5
            torch._foreach_add_(alike, update.unbind(), alpha=-rate)


def make_optimizers(model, muon_lr, adamw_lr):
    """Muon for the matrices that turn features into features, AdamW for the rest (norms,
    positions, token embedding and head); no weight decay. [(optimizer, peak lr)]"""
    def is_matrix(name, weight):
        features = name.split(".")[0] in ("vit", "projector", "blocks")
        return weight.dim() == 2 and name.endswith(".weight") and features
    named = list(model.named_parameters())
    matrices = [weight for name, weight in named if is_matrix(name, weight)]
    rest = [weight for name, weight in named if not is_matrix(name, weight)]
    return [(Muon(matrices, muon_lr, momentum=0.9), muon_lr),
            (torch.optim.AdamW(rest, lr=adamw_lr, weight_decay=0.0, fused=True), adamw_lr)]
