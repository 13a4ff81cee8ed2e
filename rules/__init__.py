"""Decoding rules, one per file: `def rule(step)`, or `def rule(step, k=4)` for a rule with a number, as in `--rule maskgit:4`.

A rule says which positions of the window to commit, as a bool tensor (B, W); `mini_dimple.Step` documents what it sees.
It may return two such tensors, (commit, take back), to make committed positions [MASK] again. These files have no
privilege over yours: `--rule path/to/mine.py:4` goes the same way as `--rule maskgit:4`.
"""
import importlib.util
import inspect
import math
import sys
from pathlib import Path

import torch

from mini_dimple import confident


def scheduled(step, k):
    """How many positions of each example to commit now (B,), for k >= 1 per iteration on average; k may be a fraction.

    The public code's schedule: over a uniform grid of times, from all masked at 1 to none at 0, go to the next time s at
    which n_masked * (1 - s / t) >= 1, where t is the share masked now. The grid here has k positions between two times."""
    k = min(max(k, 1), step.masked.shape[1])
    done = (~step.masked & ~step.given).sum(1)
    return ((k * torch.ceil((done + 1) / k)).floor().long() - done).clamp(min=1)


def top(step, score, count):
    """The `count` (B,) masked positions of each example with the highest score (B, W), as a bool tensor (B, W)."""
    order = score.masked_fill(~step.masked, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return (order.argsort(dim=1) < count[:, None]) & step.masked


def named():
    """The names of the rules in this folder, and `confident`."""
    return ["confident", *sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")]


def resolve(text):
    """"maskgit", "maskgit:4", "confident:0.9" or "path/to/mine.py:4" -> rule, its __name__ the text.

    Raises ValueError, naming the text, for an unknown rule, a file that fails or has no `rule`, or a number it does not take."""
    name, _, number = text.rpartition(":") if ":" in text and not text.endswith(".py") else (text, "", "")
    try:
        value = [float(number)] if number else []
    except ValueError:
        raise ValueError(f"--rule {text}: {number!r} is not a number") from None
    if value and not (math.isfinite(value[0]) and value[0] > 0):
        raise ValueError(f"--rule {text}: the number must be above 0")
    if name == "confident":
        try:
            found = confident(*value or [0.9])
        except ValueError as error:
            raise ValueError(f"--rule {text}: {error}") from None
        chosen = lambda step: found(step)
    else:
        found = load_rule(name, text)
        if value and not takes_number(found):
            raise ValueError(f"--rule {text}: this rule takes no number")
        chosen = lambda step: found(step, *value)
    chosen.__name__ = text
    return chosen


def takes_number(function):
    try:
        return len(inspect.signature(function).parameters) > 1
    except ValueError:  # some built-in functions tell nothing
        return True


def load_rule(name, text):
    path = Path(name) if name.endswith(".py") else Path(__file__).parent / f"{name}.py"
    if not path.is_file() or path.stem == "__init__":
        raise ValueError(f"--rule {text}: " + (f"{path} does not exist" if name.endswith(".py") else
                         f"unknown; choose one of {', '.join(named())}, or the path of a .py file"))
    spec = importlib.util.spec_from_file_location(f"rule_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--rule {text}: {path} fails with {type(error).__name__}: {error}") from error
    if not callable(getattr(module, "rule", None)):
        raise ValueError(f"--rule {text}: {path} defines no function `rule(step)`")
    return module.rule
