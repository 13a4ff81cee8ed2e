"""What the checkers share: the shipped weights, a few held-out scenes, a watch on the model, and
failing with a lesson.

A checker is a few functions check_...(solution), and one that shows what the student's function
does once it is right; `exercise` makes a test of them. The exercise imports it in its last line, so
that pytest finds it there; `python -m exercises` takes its `run`. `solution` is the module that the
student wrote."""
import functools
import traceback
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

from data import toy
from lab.checkpoint import SHIPPED, SHIPPED_AR, SHIPPED_WEAK, load
from lab.evaluate import Scenes, decoded, exact_way
from rules import RuleError, checked, resolve

CPU = torch.device("cpu")


def teach(right, lesson):
    """Fail with the lesson alone, no traceback, unless `right`."""
    if not right:
        raise pytest.fail.Exception(lesson, pytrace=False) from None


def exercise(*checks, show=None):
    """-> a test: the checks in turn, the first failure ends it; then `show(solution)`, a few lines
    of text made with the student's function, is printed past pytest's capture. An exception in the
    student's code is shown with the student's line alone."""
    def run(solution):
        """-> what is shown of a right solution. Fails with a lesson of any other."""
        scenes.cache_clear()  # another solution may have written into them
        try:
            for check in checks:
                check(solution)
            return show(solution) if show else ""
        except (Exception, SystemExit) as error:
            lesson = explained(error, solution)
            if not lesson:
                raise  # not the student's doing
            teach(False, lesson)

    def test_exercise(request):
        shown = run(request.module)
        with request.getfixturevalue("capsys").disabled():
            print(f"\n{shown}")
    test_exercise.run = run
    return test_exercise


def explained(error, solution):
    """An exception as a lesson, with the line of the student's code that it came through; "" if it
    came through none, and is no rule's."""
    first = isinstance(error, RuleError) and error.__cause__ or error
    own = [frame for frame in traceback.extract_tb(first.__traceback__)
           if frame.filename == solution.__file__]
    error = first if own else error
    # PyTorch raises some, too, with a message
    if isinstance(error, NotImplementedError) and not error.args and own:
        return f"{own[-1].name} is not written yet."
    line = f"Line {own[-1].lineno}: {own[-1].line}\n" if own else ""
    return f"{line}{type(error).__name__}: {error}" if own or isinstance(error, RuleError) else ""


def teach_tensor(value, shape, dtype, what):
    """Fail unless `value` is a tensor of this shape and dtype; `what` names it."""
    teach(isinstance(value, torch.Tensor), f"{what} must be a tensor of shape {shape}, not "
          f"{type(value).__name__}. Does your function return it?")
    teach(tuple(value.shape) == tuple(shape),
          f"{what} has shape {tuple(value.shape)}; it must be {tuple(shape)}.")
    teach(value.dtype == dtype, f"{what} has dtype {value.dtype}; it must be {dtype}.")


@functools.cache
def shipped(phase="diffusion"):
    """-> model, tokenizer of the weights that come with the repository: after either phase, "ar" or
    "diffusion", or "weak", of an earlier step."""
    paths = {"diffusion": SHIPPED, "ar": SHIPPED_AR, "weak": SHIPPED_WEAK}
    model, tokenizer, _ = load(paths[phase], CPU)
    return model, tokenizer


@functools.cache
def scenes(n):
    """n held-out scenes: images, prompts, windows of masks, and a right response to each."""
    model, tokenizer = shipped()
    return Scenes(model.config, tokenizer, n, CPU)


def way(rule, n, block="trained", temperature=0.0):
    """How a rule, the student's function or one of rules/ by its name, captions the first n scenes
    in a block of the board, "exact", "trained" or "weak": rows -> Decoded."""
    rule = resolve(rule) if isinstance(rule, str) else checked(rule, "rule")
    if block == "exact":
        return exact_way(scenes(n), rule, temperature)
    model = shipped("diffusion" if block == "trained" else block)[0]
    return lambda rows: decoded(model, scenes(n)[rows], rule, temperature=temperature)


def count_right(texts):
    """How many captions are right, of the first scenes, one of each."""
    some = scenes(64)
    return sum(toy.mistake(text, scene, some.board) is None
               for text, scene in zip(texts, some.split.scenes))


class Pass(NamedTuple):
    """One pass of the model over one example, as `watched` saw it."""
    window: torch.Tensor  # (W,) ids that went in
    probs: torch.Tensor   # (W, vocab), [MASK] excluded


@contextmanager
def watched(model, images, prompt, most_passes, lesson):
    """Notes each pass of the model: -> [passes of example 0, passes of example 1, ...], told apart
    by their pictures.

    Also makes [MASK] the most probable token of every position, as nothing forbids; and fails with
    `lesson` after `most_passes` passes, so that a loop which never ends does."""
    with torch.no_grad():
        prefixes = model.prefix(images, prompt)  # (B, V + P, D)
    seen, calls, mask = [[] for _ in images], 0, torch.tensor(model.config.mask_id)

    def logits_of(prefix, response, causal, past=None):
        nonlocal calls
        calls += 1
        teach(calls <= most_passes, lesson)
        logits, cache = type(model).logits(model, prefix, response, causal, past)
        if past is None:
            probs = logits.detach().index_fill(-1, mask, -torch.inf).softmax(-1)
            for row in range(len(prefix)):
                b = (prefixes - prefix[row].detach()).abs().amax((1, 2)).argmin().item()
                seen[b].append(Pass(response[row].clone(), probs[row]))
        return logits.index_fill(-1, mask, 100.0), cache
    model.logits = logits_of
    try:
        yield seen
    finally:
        del model.logits  # the class's own method again
