"""What the command lines of train.py, sample.py and `python -m lab` share."""
import argparse
import contextlib
import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import torch

from lab.checkpoint import ROOT, SHIPPED
from rules import named

# ---------------------------------------------------------------- errors, and output that ends

def fail(message):
    """Ends the script with one line on stderr and exit status 2."""
    print(f"{program()}: error: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(2)


def program():
    """What runs, as its messages begin: `sample.py`, `python -m lab`."""
    path = Path(sys.argv[0])
    return f"python -m {path.parent.name}" if path.stem == "__main__" else path.name


class Parser(argparse.ArgumentParser):
    def error(self, message):
        fail(message)


@contextlib.contextmanager
def reporting(*kinds):
    """Inside, these exceptions are the user's to mend: `fail`, no traceback. For options and files
    alone: a ValueError of the model or of decoding is a mistake in the code."""
    try:
        yield
    except BrokenPipeError:  # an OSError, but nobody is left to read about it: `script` ends it
        raise
    except kinds as error:
        fail(error)


def script(main):
    """Decorator of a script's `main(argv)`: no traceback when the reader of a pipe has gone
    (`| head -1`) or at Ctrl-C; a terminal that cannot show a character gets a `?`."""
    @functools.wraps(main)
    def wrapper(argv=None):
        if hasattr(sys.stdout, "reconfigure"):  # a notebook's stream has no encoding
            sys.stdout.reconfigure(errors="replace")
        try:
            try:
                main(argv)
            finally:
                sys.stdout.flush()  # not at the interpreter's exit, where nothing can catch it
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left must not fail again
            raise SystemExit(141) from None  # as of a program that SIGPIPE ends
        except KeyboardInterrupt:
            print(f"\n{program()}: stopped", file=sys.stderr)
            raise SystemExit(130) from None
    return wrapper


# ---------------------------------------------------------------- options

def between(kind, low, high=math.inf):
    """An argparse type: a number of a kind (int, float) with low <= number < high."""
    def read(text):
        number = kind(text)
        if not low <= number < high:
            below = f" and below {high}" * (high < math.inf)
            raise argparse.ArgumentTypeError(f"must be {low} or more{below}, not {text}")
        return number
    read.__name__ = kind.__name__  # argparse: invalid int value
    return read


count, positive, seed = between(int, 0), between(int, 1), between(int, 0, 2 ** 32)
share, temperature = between(float, 0, 1), between(float, 0)

OPTIONS = {  # name -> the words of add_argument
    "checkpoint": dict(type=Path, default=SHIPPED, metavar="F",
                       help="default: the weights of this repository"),
    "look": dict(default="prefilled", metavar="LOOK",
                 help=f"how a pass is made: {', '.join(named('look'))}, or path/to/mine.py "
                 "(default: %(default)s)"),
    "length": dict(type=positive, metavar="N",
                   help="window, in tokens (default: the longest trained)"),
    "temperature": dict(type=temperature, default=0.0, metavar="T",
                        help="0 (default) proposes the most probable token"),
    "seed": dict(type=seed, default=0, metavar="S", help="default: %(default)s"),
    "device": dict(choices=("auto", "cpu", "cuda", "mps"), default="auto",
                   help="default: auto, which is cuda where there is one, else cpu; mps: Apple's "
                   "GPUs, not tried"),
}


def options(parser, *names, **changed):
    """Adds those of OPTIONS to the parser; `changed`: name -> words in place of the table's."""
    for name in (*names, *changed):
        parser.add_argument(f"--{name}", **OPTIONS[name] | changed.get(name, {}))


def pick_device(name):
    """One of the choices of --device -> torch device. Raises ValueError for one that is not
    there."""
    there = dict(cpu=True, cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available())
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    if not there[name]:
        raise ValueError(f"--device {name}: this PyTorch sees none; use --device cpu, or install "
                         "a build that does (https://pytorch.org/get-started/locally)")
    return torch.device(name)


def commit():
    """The commit of this code, "-dirty" if files but docs/ differ from it; "unknown" outside a
    clone."""
    def git(*words):
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True).stdout
    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!docs")
        return (git("rev-parse", "--short", "HEAD").strip() or "unknown") + "-dirty" * bool(changed)
    except OSError:  # no git
        return "unknown"
