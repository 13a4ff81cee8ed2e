"""Decoding rules, one per file: `def rule(step)`, or `def rule(step, k=4)` for a rule with numbers,
as in `--rule maskgit:4`.

A rule says which positions of the window to commit, a bool tensor (B, W), or what the next window
is, ids (B, W'); `mini_dimple.Step` documents what it sees. These files have no privilege over
yours: `--rule path/to/mine.py:4` goes the same way as `--rule maskgit:4`. So do looks, the files of
looks/: `--look path/to/mine.py:4`, with `def look(model, images, prompt, k=4)`.
"""
import importlib.util
import inspect
import math
import sys
import traceback
from pathlib import Path

import torch

from mini_dimple import confident, full, prefilled

ROOT = Path(__file__).parent.parent
LOOKS = {"prefilled": prefilled, "full": full}
CORE = {"rule": ["confident"], "look": list(LOOKS)}  # what is not a file


class RuleError(Exception):
    """A reader's rule or look failed, or answered with what the loop cannot take; the message names
    it, file and line."""


# ---------------------------------------------------------------- for rules

def top(masked, score, count):
    """The `count` positions of `masked` (B, W) with the highest score (B, W) in each row, or all if
    there are fewer: bool (B, W). `count`: a whole number, or each row's (B, 1)."""
    if not isinstance(count, torch.Tensor) and (count < 1 or count % 1):
        raise ValueError(f"expected a whole number of positions, 1 or more, got {count}")
    order = score.masked_fill(~masked, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return (order.argsort(dim=1) < count) & masked


def runs(where):
    """Runs of neighbours in `where` (B, W) -> (B, W) each: the place where a place's run starts,
    and the run's size; outside of `where` the size is -1."""
    W, place = where.shape[1], torch.arange(where.shape[1], device=where.device)
    before = torch.where(where, -1, place).cummax(1).values  # the last place outside
    after = torch.where(where, W, place).flip(1).cummin(1).values.flip(1)
    return (before + 1).clamp(max=W - 1), after - before - 1


# -------------------------------------------------------- from a word of the command line to a rule

def named(wanted="rule"):
    """The names that `resolve` knows, or for "look" `resolve_look`: some of mini_dimple.py, and the
    files of rules/ or looks/."""
    files = (ROOT / f"{wanted}s").glob("*.py")
    return [*CORE[wanted], *sorted(path.stem for path in files if path.stem != "__init__")]


def resolve(text):
    """"maskgit", "maskgit:4", "confident:0.9", "path/to/mine.py:7" or "mine.py:tau=0.6,eps=0.01" ->
    rule, `checked`.

    Its __name__ is the text, of a path only the file's name. Raises ValueError, naming the text,
    for an unknown rule, a file that fails or has no `rule`, or numbers that it does not take."""
    if text.partition(":")[0] != "confident":
        return checked(*with_numbers(text, "rule"))
    values, options = read_numbers(text.partition(":")[2], f"--rule {text}")
    try:
        return checked(confident(*values or [0.9] * (not options), **options), text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--rule {text}: {error}") from None


def with_numbers(text, wanted):
    """The function called `wanted` that a text names, its numbers filled in -> function, title,
    file. Raises ValueError, as `resolve`."""
    has_numbers = ":" in text and not text.endswith(".py")
    name, _, numbers = text.rpartition(":") if has_numbers else (text, "", "")
    values, options = read_numbers(numbers, f"--{wanted} {text}")
    found, file = load_file(name, text, wanted)
    first = 1 if wanted == "rule" else 3  # what it is called with: step; model, images, prompt
    try:
        inspect.signature(found).bind(*[None] * first, *values, **options)
    except TypeError as error:
        taken = list(inspect.signature(found).parameters.values())[first:]
        raise ValueError(f"--{wanted} {text}: {error}; `{wanted}` takes "
                         f"{', '.join(map(str, taken)) or 'no number'}") from None
    except ValueError:  # some built-in functions tell nothing
        pass
    title = ":".join([Path(name).stem, *[numbers] * bool(numbers)])
    return lambda *given: found(*given, *values, **options), title, file


def read_numbers(numbers, option):
    """"7", "0.5" or "tau=0.6,k=2" -> positional values, named ones; whole numbers as int. Raises
    ValueError, naming the option."""
    values, options = [], {}
    for part in numbers.split(",") if numbers else []:
        name, _, number = part.rpartition("=")
        try:
            value = float(number)
            if not 0 <= value < math.inf:
                raise ValueError
            value = int(number) if number.strip().isdecimal() else value
        except ValueError:
            raise ValueError(f"{option}: {number!r} is not a number, 0 or more") from None
        if name:
            options[name.strip()] = value
        else:
            values.append(value)
    return values, options


def checked(rule, name, file=None):
    """A reader's rule, each answer checked before the loop takes it; `file`: where it stands. The
    rule raises RuleError then."""
    what = f"decoding rule {name!r}"

    def wrapper(step):
        (B, W, vocab), device = step.probs.shape, step.tokens.device
        answer = blaming(what, file, lambda: rule(step))
        blaming(f"{what}: step.confidence", file, lambda: step.expect_numbers(
            step.confidence.masked_fill(~step.masked, 0)))  # as `commit`, but here it is blamed
        got = (f"{answer.dtype} {tuple(answer.shape)} on {answer.device}"
               if isinstance(answer, torch.Tensor) else type(answer).__name__)
        window = got.startswith("torch.int64") and answer.shape[:1] == (B,) and answer.dim() == 2
        fits = window and answer.shape[1] and answer.device == device
        if not fits and got != f"torch.bool {(B, W)} on {device}":
            raise RuleError(f"{what}: it must return positions to commit, torch.bool {(B, W)} on "
                            f"{device}, or the next window, torch.int64 ({B}, any length), "
                            f"not {got}")
        if window and not ((answer >= 0) & (answer < vocab)).all():
            raise RuleError(f"{what}: its window holds ids from {answer.min()} to {answer.max()}; "
                            f"the vocabulary has 0 to {vocab - 1}")
        return answer
    wrapper.__name__ = name
    return wrapper


def blaming(what, file, work):
    """work(); what it raises, sys.exit() too, becomes a RuleError with the last line of the file
    that it went through."""
    try:
        return work()
    except RuleError:
        raise
    except (Exception, SystemExit) as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__)
               if file and frame.filename == str(file.absolute())]
        place = f"{file}, line {own[-1].lineno}, `{own[-1].line}`: " if own else ""
        raise RuleError(f"{what}: {place}{type(error).__name__}: {error}") from error


def load_module(path, name):
    """A reader's Python file -> its module. Raises what the file raises."""
    spec = importlib.util.spec_from_file_location(name, path.absolute())
    # dataclasses look their module up there
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_file(name, text, wanted):
    """The function called `wanted` of a file, or of a name in this folder -> function, path. Raises
    ValueError."""
    path = Path(name) if name.endswith(".py") else ROOT / f"{wanted}s" / f"{name}.py"
    if not path.is_file() or path.stem == "__init__":
        raise ValueError(f"--{wanted} {text}: " + (
            f"{path} does not exist" if name.endswith(".py") else
            f"unknown; choose one of {', '.join(named(wanted))}, or the path of a .py file"))
    try:
        module = load_module(path, f"{wanted}_{path.stem}")
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"--{wanted} {text}: {path} fails with {type(error).__name__}: {error}") from error
    if not callable(getattr(module, wanted, None)):
        raise ValueError(f"--{wanted} {text}: {path} defines no function `{wanted}`")
    return getattr(module, wanted), path


def resolve_look(text):
    """"prefilled", "full", "changed:0.9" or "path/to/mine.py" -> a maker of looks: (model, images,
    prompt) -> look. Raises ValueError, as `resolve`; what the maker or its looks raise becomes a
    RuleError."""
    if text in LOOKS:
        return LOOKS[text]
    made, title, file = with_numbers(text, "look")
    what = f"look {title!r}"

    def maker(model, images, prompt):
        look = blaming(what, file, lambda: made(model, images, prompt))

        def wrapper(tokens, state=None):
            answer = blaming(what, file, lambda: look(tokens, state))
            if not isinstance(answer, tuple) or len(answer) != 2:
                raise RuleError(f"{what}: look(tokens, state) must return two things, the logits "
                                "and the next state (None if it keeps nothing)")
            logits, shape = answer[0], (*tokens.shape, model.config.vocab_size)
            if (not isinstance(logits, torch.Tensor) or logits.shape != shape
                    or not logits.is_floating_point() or logits.device != tokens.device):
                raise RuleError(f"{what}: it must return logits {shape} on {tokens.device}, "
                                f"not {getattr(logits, 'shape', type(logits).__name__)}")
            if not logits.amax(-1).isfinite().all():
                raise RuleError(f"{what}: expected numbers, got a NaN, an infinity, or -inf for "
                                "every token of a position; look for 0/0 and for 0 * log(0)")
            return answer
        return wrapper
    maker.__name__ = title
    return maker
