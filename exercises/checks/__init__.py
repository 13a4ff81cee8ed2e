"""What the checkers share.

A checker is a list `CHECKS` of properties, functions of the reader's module that `teach` where it
does not have them, and `show(solution)`: what the reader's functions do once they are right, line
by line."""
import copy
import functools
import importlib
import time
import traceback

import torch

from data import toy
from lab.checkpoint import SHIPPED, SHIPPED_AR, SHIPPED_WEAK, load
from lab.evaluate import Scenes, decoded, exact_way, graded
from rules import RuleError, checked, load_module, resolve

CPU = torch.device("cpu")


class Lesson(Exception):
    """What is wrong with a reader's file, in words for the reader."""


def teach(right, lesson):
    if not right:
        raise Lesson(lesson)


# ---------------------------------------------------------------- a reader's file

def check(say, path):
    """A reader's file -> whether it passes; its lesson, or what it shows; seconds. `say(words)`
    tells how far it came."""
    start = time.monotonic()
    try:
        teach(path.is_file(), f"There is no such file in {path.parent}.")
        say("loading the file")
        solution = load_module(path, f"exercise_{path.stem}")
        checker = importlib.import_module(f"exercises.checks.{path.stem[3:]}")
        for n, one in enumerate(checker.CHECKS, 1):
            say(f"check {n} of {len(checker.CHECKS)}, {one.__name__.replace('_', ' ')}")
            one(solution)
        say("all checks passed; this is what it shows")
        passes, text = True, "\n".join(checker.show(solution))
    except Lesson as lesson:
        passes, text = False, str(lesson)
    except (Exception, SystemExit) as error:
        passes, text = False, explained(error, str(path)) or (
            f"The checker did not expect this, and failed.\n\n{traceback.format_exc()}")
    return passes, text, time.monotonic() - start


def explained(error, file):
    """An exception as a lesson, with the line of the reader's file that it came through; "" if it
    came through none, and is no rule's: then it is ours."""
    first = isinstance(error, RuleError) and error.__cause__ or error
    own = [(frame.lineno, frame.line, frame.name)
           for frame in traceback.extract_tb(first.__traceback__) if frame.filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        own = [(error.lineno, (error.text or "").strip(), "")]
    if isinstance(error, AttributeError) and getattr(error.obj, "__file__", "") == file:
        return f"Your file defines no `{error.name}`."
    if not own:
        return str(error) if isinstance(error, RuleError) else ""
    line, code, name = own[-1]
    # PyTorch raises some, too, with a message
    if isinstance(first, NotImplementedError) and not first.args:
        return f"{name} is not written yet."
    return f"Line {line}: {code}\n{type(first).__name__}: {first}"


def ask(function, *given):
    """function(*given): a reader's function, which must leave its arguments as they are."""
    copies = [copy.deepcopy(x) if isinstance(x, (torch.Tensor, list)) else x for x in given]
    answer = function(*copies)
    teach(all(map(same, copies, given)), f"{function.__name__} changes its arguments, which are "
          "needed afterwards. Make new tensors: masked_fill, not masked_fill_; x / 4, not x /= 4.")
    return answer


def same(x, y):
    if isinstance(x, (list, tuple)):
        return len(x) == len(y) and all(map(same, x, y))
    return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


# ---------------------------------------------------------------- what it returned

def teach_tensor(value, shape, dtype, what):
    """Fail unless `value` is a tensor of this shape and dtype (None: any); `what` names it."""
    teach(isinstance(value, torch.Tensor), f"{what} must be a tensor of shape {tuple(shape)}, not "
          f"{type(value).__name__}. Does your function return it?")
    teach(tuple(value.shape) == tuple(shape),
          f"{what} has shape {tuple(value.shape)}; it must be {tuple(shape)}.")
    teach(dtype in (None, value.dtype), f"{what} has dtype {value.dtype}; it must be {dtype}.")


def teach_tuple(value, *names):
    """-> `value`, if it is a tuple of as many as there are names."""
    teach(isinstance(value, tuple) and len(value) == len(names),
          f"Your function must return {len(names)} things: {', '.join(names)}.")
    return value


def number(value, what):
    """A number, or a tensor with one, as a float."""
    one = value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, (int, float))
    teach(one, f"{what} must return one number, not {type(value).__name__}.")
    return float(value)


def compare(mine, right, mistakes, said, atol=1e-3):
    """Fail unless `mine`, a number or tensor, is near `right`. `mistakes`: lesson -> what somebody
    gets who makes that mistake."""
    near = lambda value: torch.allclose(torch.as_tensor(mine).double(),
                                        torch.as_tensor(value).double(), rtol=0, atol=atol)
    if not near(right):
        raise Lesson(said + next((lesson for lesson, got in mistakes.items() if near(got)), ""))


# ---------------------------------------------------------------- models, scenes, rules

@functools.cache
def shipped(phase="diffusion"):
    """-> model, tokenizer of the weights that come with the repository: after either phase, "ar" or
    "diffusion", or "weak", of an earlier step."""
    paths = {"diffusion": SHIPPED, "ar": SHIPPED_AR, "weak": SHIPPED_WEAK}
    model, tokenizer, _ = load(paths[phase], CPU)
    return model, tokenizer


MODEL, TOKENIZER = shipped()
CONFIG = MODEL.config
MASK, EOS = CONFIG.mask_id, CONFIG.eos_id


@functools.cache
def scenes(n=64, length=None):
    """n held-out scenes: images, prompts, windows of masks, and a right response to each."""
    return Scenes(CONFIG, TOKENIZER, n, CPU, length=length)


SOME = scenes()


def way(rule, n=64, block="trained", temperature=0.0, length=None):
    """How a rule, the reader's function or one of rules/ by its name, captions the first n scenes
    in a block of the board, "exact", "trained" or "weak", or by the "ar" weights: rows ->
    Decoded."""
    rule = resolve(rule) if isinstance(rule, str) else checked(rule, "rule")
    if block == "exact":
        return exact_way(scenes(n), rule, temperature)
    model, some = shipped("diffusion" if block == "trained" else block)[0], scenes(n, length)
    return lambda rows: decoded(model, some[rows], rule, temperature=temperature)


@functools.cache
def measured(rule, n=64, block="trained", temperature=0.0, length=None):
    """-> the Captions of `way`."""
    return graded(way(rule, n, block, temperature, length), scenes(n, length))


def mean(values):
    return sum(values) / len(values)


def count_right(texts):
    """How many captions of the first scenes, one of each, are right."""
    return sum(toy.mistake(text, scene, SOME.board) is None
               for text, scene in zip(texts, SOME.split.scenes))


class Watched:
    """The shipped model as exercises 4 and 9 call it. It notes the windows that go in, and makes
    [MASK] the most probable token everywhere, as nothing forbids; a window that comes again and
    again fails."""
    config = CONFIG

    def __init__(self):
        self.windows = []

    def __call__(self, images, prompt, tokens, causal):
        self.windows.append(tokens.clone())
        # who decodes example by example shows a window of masks once for each
        teach(sum(torch.equal(tokens, window) for window in self.windows) <= 20, "Your loop does "
              "not end. Usual reasons: no masked position passes the threshold, and none is "
              "committed; the proposal is [MASK] itself; or committed positions win the argmax.")
        return MODEL(images, prompt, tokens, causal).index_fill(-1, torch.tensor(MASK), 100.0)
