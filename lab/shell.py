"""What the command lines of train.py, sample.py and `python -m lab` share."""
import argparse
import contextlib
import functools
import io
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from lab.checkpoint import ROOT


@contextlib.contextmanager
def reporting(*kinds):
    """Inside, these exceptions are the user's to mend: one line on stderr and exit status 2, no
    traceback."""
    try:
        yield
    except BrokenPipeError:  # an OSError, but nobody is left to read about it: `script` ends it
        raise
    except kinds as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


class Parser(argparse.ArgumentParser):
    """Errors are one line on stderr and exit status 2."""

    def error(self, message):
        print(f"{self.prog}: error: {' '.join(str(message).split())}", file=sys.stderr)
        raise SystemExit(2)

    @contextlib.contextmanager
    def reporting(self, *kinds):
        """Inside, these exceptions are the user's to mend: reported by `error`, no traceback."""
        try:
            yield
        except BrokenPipeError:  # an OSError, but nobody is left to read about it: `script` ends it
            raise
        except kinds as error:
            self.error(error)


def script(main):
    """Decorator of a script's `main(argv)`, for output that ends or is elsewhere.

    A terminal that cannot show a character gets a `?`; a stream that a notebook put in place of
    stdout is taken as it is; when the reader of a pipe has gone (`| head -1`), or at Ctrl-C, the
    script ends without a traceback."""
    @functools.wraps(main)
    def wrapper(argv=None):
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        try:
            try:
                main(argv)
            finally:
                sys.stdout.flush()  # not at the interpreter's exit, where nothing can catch it
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (sys.stdout, sys.stderr):  # what they hold must not fail again
                with contextlib.suppress(io.UnsupportedOperation):  # a stream without a file
                    os.dup2(nowhere, stream.fileno())
            sigpipe = getattr(signal, "SIGPIPE", 13)  # Windows has none
            raise SystemExit(128 + sigpipe) from None  # as a program the signal ends
        except KeyboardInterrupt:
            print(f"\n{Path(sys.argv[0]).name}: stopped", file=sys.stderr)
            raise SystemExit(130) from None
    return wrapper


def count(text):
    """argparse type: a whole number, 0 or more."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text}: must be 0 or more")
    return number


def positive(text):
    """argparse type: a whole number, 1 or more."""
    number = count(text)
    if not number:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def seed(text):
    """argparse type: a whole number from 0 to 2^32 - 1."""
    number = count(text)
    if number >= 2 ** 32:
        raise argparse.ArgumentTypeError(f"{text}: must be below 2^32")
    return number


def share(text):
    """argparse type: a fraction, at least 0 and below 1."""
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 0 and below 1")
    return number


def temperature(text):
    """argparse type: a finite number, 0 or more."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a number, 0 or more")
    return number


DEVICE = dict(  # argparse's words for --device
    choices=("auto", "cpu", "cuda", "mps"),
    help="default: auto, which is cuda where there is one, else cpu; mps: Apple's GPUs, not tried")


def pick_device(name):
    """One of DEVICE's choices -> torch device. Raises ValueError for cuda without CUDA, mps without
    Apple's GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this PyTorch sees no CUDA device; use --device cpu, or "
                         "install a CUDA build (https://pytorch.org/get-started/locally)")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: this PyTorch sees no GPU of Apple's; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def commit():
    """The commit of this code, "-dirty" if files but docs/ differ from it; "unknown" outside a
    clone."""
    def git(*words):
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)
    try:
        found = git("rev-parse", "--short", "HEAD").stdout.strip() or "unknown"
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!docs")
    except OSError:  # no git
        return "unknown"
    return found + "-dirty" * bool(changed.stdout.strip())
