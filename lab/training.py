"""What a training run is made of: its data, the precision of its products, its optimizers."""
import statistics
from typing import NamedTuple

import torch

from data import Split, folder, toy
from mini_dimple import Config
from tokenizer import Tokenizer

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
    """train.py's settings -> Data. Raises ValueError for a bad --data folder, and for captions or
    prompts that do not fit."""
    preset, shape, n = settings["preset"], settings["config"], settings["evaluate"]
    if settings["data"]:
        origin = dict(trained_on="pictures")
        (train, lines), (test, test_lines) = folder.read(
            settings["data"], shape.get("image_px", Config.image_px), settings["holdout"])
        if test is None:
            print("no picture is held out: the figures are of the training pictures")
            test, test_lines = train, lines
    else:
        origin = dict(trained_on=preset, wording=settings["wording"], order=settings["order"])
        board, n = toy.of(origin), HELD_OUT_SCENES if n is None else n
        train = toy.examples(board, settings["examples"], settings["seed"], held_out=False)
        test = toy.examples(board, n, 0, held_out=True, instruction=toy.DESCRIBE)
        lines, test_lines = ([f"--examples {settings['examples']}, too few for a good tokenizer"]
                             * len(split.texts) for split in (train, test))
    def check(tokenizer):
        for split, places in ((train, lines), (test, test_lines)):
            folder.check_lengths(split, places, tokenizer, shape.get("window", Config.window),
                                 shape.get("prompt_tokens", 64))
    check(None)
    if settings["merges"] is None:
        tokenizer = Tokenizer.train(train.texts + train.prompts)
    else:  # of the --ar-phase
        tokenizer = Tokenizer(settings["merges"])
    check(tokenizer)
    found = dict(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id,
                 mask_id=tokenizer.mask_id, prompt_tokens=max(
                     len(tokenizer.encode(prompt)) for prompt in {*train.prompts, *test.prompts}))
    if settings["data"]:
        test = Split(test.images[:n], test.prompts[:n], test.texts[:n])
    origin["prompt"] = statistics.mode(train.prompts)
    return Data(train, test, tokenizer, Config(**found | shape), origin)


# ---------------------------------------------------------------- precision

def low_precision(device):
    """What matrices are multiplied in where that pays: bf16 on a CUDA device that computes it
    natively, else float32. A T4 and most CPUs emulate it, a hundred times as slow."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def autocast(device):
    """bf16 where `low_precision` says so; float32 elsewhere."""
    dtype = low_precision(device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


# ---------------------------------------------------------------- optimizers

def orthogonalise(matrices, dtype):
    """The orthogonal factor, roughly, of each matrix (n, rows, columns), computed in `dtype`: five
    Newton-Schulz steps, after which singular values are between about 0.7 and 1.2. Coefficients:
    K. Jordan, https://kellerjordan.github.io/posts/muon."""
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
    matrices, rest = [], []
    for name, weight in model.named_parameters():
        of_features = name.startswith(("vit.", "projector.", "blocks."))
        is_matrix = of_features and name.endswith(".weight") and weight.dim() == 2
        (matrices if is_matrix else rest).append(weight)
    return [(Muon(matrices, muon_lr, momentum=0.9), muon_lr),
            (torch.optim.AdamW(rest, lr=adamw_lr, weight_decay=0.0, fused=True), adamw_lr)]
