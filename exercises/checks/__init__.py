"""What the checkers share: the shipped weights, a few held-out scenes, a watch on the model, and
failing with a lesson.

A checker is a few functions check_...(solution), made into one test by `exercise`; the exercise
imports that test in its last line, and `solution` is the module that did so."""
import functools
import traceback
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

from data import toy
from lab.checkpoint import SHIPPED, SHIPPED_AR, load
from lab.evaluate import Scenes
from rules import RuleError

CPU = torch.device("cpu")


def teach(right, lesson):
    """Fail with the lesson alone, no traceback, unless `right`."""
    if not right:
        raise pytest.fail.Exception(lesson, pytrace=False) from None


def exercise(*checks):
    """-> a test: the checks in turn, the first failure ends it. An exception in the student's code
    is shown with the student's line alone."""
    def test_exercise(request):
        solution = request.module
        try:
            for check in checks:
                check(solution)
        except Exception as error:
            first = isinstance(error, RuleError) and error.__cause__ or error
            frames = traceback.extract_tb(first.__traceback__)
            own = [frame for frame in frames if frame.filename == solution.__file__]
            if not own and not isinstance(error, RuleError):
                raise  # not the student's doing
            error = first if own else error
            # PyTorch raises some, too, with a message
            if isinstance(error, NotImplementedError) and not error.args:
                teach(False, f"{own[-1].name} is not written yet.")
            line = f"Line {own[-1].lineno}: {own[-1].line}\n" if own else ""
            teach(False, f"{line}{type(error).__name__}: {error}")
    return test_exercise


def teach_tensor(value, shape, dtype, what):
    """Fail unless `value` is a tensor of this shape and dtype; `what` names it."""
    teach(isinstance(value, torch.Tensor), f"{what} must be a tensor of shape {shape}, not "
          f"{type(value).__name__}. Does your function return it?")
    teach(tuple(value.shape) == tuple(shape),
          f"{what} has shape {tuple(value.shape)}; it must be {tuple(shape)}.")
    teach(value.dtype == dtype, f"{what} has dtype {value.dtype}; it must be {dtype}.")


@functools.cache
def shipped(phase="diffusion"):
    """-> model, tokenizer of the weights that come with the repository, of either phase."""
    model, tokenizer, _ = load({"diffusion": SHIPPED, "ar": SHIPPED_AR}[phase], CPU)
    return model, tokenizer


@functools.cache
def scenes(n):
    """n held-out scenes: images, prompts, windows of masks, and a right response to each."""
    model, tokenizer = shipped()
    return Scenes(model.config, tokenizer, n, CPU)


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

    def score(prefix, response, causal, past=None):
        nonlocal calls
        calls += 1
        teach(calls <= most_passes, lesson)
        logits, cache = type(model).score(model, prefix, response, causal, past)
        if past is None:
            probs = logits.detach().index_fill(-1, mask, -torch.inf).softmax(-1)
            for row in range(len(prefix)):
                b = (prefixes - prefix[row].detach()).abs().amax((1, 2)).argmin().item()
                seen[b].append(Pass(response[row].clone(), probs[row]))
        return logits.index_fill(-1, mask, 100.0), cache
    model.score = score
    try:
        yield seen
    finally:
        del model.score  # the class's own method again
