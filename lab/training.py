"""What a training run is made of: presets, data, precision, optimizers, the loss of a phase."""
import hashlib
import statistics
from dataclasses import replace

import torch

from data import folder, toy
from lab.checkpoint import our_tokenizer
from lab.variants import complementary_loss
from mini_dimple import Config, ar_loss, diffusion_loss

PRESETS = {  # Config
    "tiny": {},  # 1 M parameters, for 2 CPU cores
    "small": dict(image_px=96, vit_width=256, vit_layers=4, width=384, layers=6, heads=8,
                  window=144),  # 12 M, for one 8 GB GPU
}
TRAINING = {  # and the rest; learning rates are peaks, the same in both phases
    "tiny": dict(ar_steps=400, diffusion_steps=800, batch_size=64, examples=20_000,
                 muon_lr=0.01, adamw_lr=8e-3),
    "small": dict(ar_steps=2000, diffusion_steps=6000, batch_size=64, examples=40_000,
                  muon_lr=0.012, adamw_lr=5e-3),
}
Tokenizer = our_tokenizer()
HELD_OUT_SCENES = 1000  # of the toy set, that a run is evaluated on


# ---------------------------------------------------------------- data

def prepare(settings):
    """train.py's settings -> train Split, evaluation Split, tokenizer, Config, origin (what a
    checkpoint says of the data), and a fingerprint of all that the losses depend on. Raises
    ValueError for a bad --data folder."""
    preset, shape, n = settings["preset"], PRESETS[settings["preset"]], settings["evaluate"]
    of_toy = {} if settings["data"] else {name: settings[name] for name in ("wording", "order")}
    image_px, window = shape.get("image_px", Config.image_px), shape.get("window", Config.window)
    if settings["data"]:
        (train, train_lines), (test, test_lines) = folder.read(
            settings["data"], image_px, settings["holdout"])
        tokenizer = Tokenizer.train(train.texts + train.prompts)
        for split, lines in ((train, train_lines), (test, test_lines)):
            if split:
                folder.check_lengths(split, lines, tokenizer, window)
        if test is None:
            if n != 0:
                print("no picture is held out: the figures will be of the training pictures")
            test = train
        prompts = train.prompts + test.prompts
        test = replace(test, images=test.images[:n], prompts=test.prompts[:n], texts=test.texts[:n])
    else:
        board = toy.of(dict(trained_on=preset, **of_toy))
        train = toy.examples(board, settings["examples"], settings["seed"], held_out=False)
        test = toy.examples(board, n, 0, held_out=True, instruction=toy.DESCRIBE)
        tokenizer = Tokenizer.train(train.texts + train.prompts)
        prompts = [toy.DESCRIBE, toy.COUNT]
        longest = max(len(tokenizer.encode(text)) for text in train.texts + test.texts)
        if longest >= window:
            raise ValueError(f"--examples {settings['examples']}: too few to learn the toy's words "
                             f"from; its captions come to {longest} tokens, and {window - 1} fit")
    config = Config(tokenizer.vocab_size, tokenizer.eos_id, tokenizer.mask_id, **shape,
                    prompt_tokens=max(len(tokenizer.encode(prompt)) for prompt in prompts))
    origin = dict(trained_on="pictures" if settings["data"] else preset,
                  prompt=statistics.mode(train.prompts), **of_toy)
    said = repr((config, origin, TRAINING[preset]))
    digest = hashlib.sha256(said.encode("utf-8", "surrogatepass"))
    for split in (train, test):
        digest.update(repr((split.prompts, split.texts)).encode("utf-8", "surrogatepass"))
        digest.update(split.images.numpy())
    return train, test, tokenizer, config, origin, digest.hexdigest()


# ---------------------------------------------------------------- a step

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


def phase_loss(model, batch, phase, generator, weighting="flat", complementary=False):
    """The loss of a batch (images, prompt, response) in a phase: a scalar, nats per token.
    `complementary`: of half the batch, as each example enters twice; a step costs what it did."""
    if phase == "ar":
        return ar_loss(model, *batch)
    if complementary:
        half = [rows[:(len(rows) + 1) // 2] for rows in batch]
        return complementary_loss(model, *half, weighting, generator)
    return diffusion_loss(model, *batch, weighting, generator)


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
