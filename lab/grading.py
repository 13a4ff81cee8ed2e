"""A reader's file, a rule or an exercise, in a process of its own, with a time limit: whatever it
does, the others are graded. Hostile code belongs in a container (docs/guide.md)."""
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from tqdm import tqdm

from rules import RuleError, named

START_S = 60  # what a process may take to start, on a busy machine


def files_of(text):
    """The .py files of the folder that `--rule` names, by name; [] if `text` names something else.
    Raises ValueError for a folder without such a file; OSError."""
    # the gallery's names come first
    if not text or text.split(":")[0] in named() or not Path(text).is_dir():
        return []
    files = [str(path) for path in sorted(Path(text).glob("[!._]*.py")) if not path.is_dir()]
    if not files:
        raise ValueError(f"--rule {text}: the folder holds no .py file")
    return files


class NotDone(RuleError):
    """A process was not done in its time, or ended before; the message says how far it came."""


def apart(work, *args, seconds, file=None, quiet=True):
    """work(say, *args), an importable function, in a process of its own -> what it returns.

    `say(words)` tells how far it came. Raises NotDone after so many seconds, with the last of these
    words and the line of `file`, the reader's, that runs then; RuleError with what `work` raised.
    `quiet`: what the process prints is thrown away."""
    context = multiprocessing.get_context("spawn")  # CUDA allows no fork
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=inside, daemon=True,
                              args=(theirs, work, args, seconds, file, quiet))
    process.start()
    theirs.close()
    said, end = "not yet begun", time.monotonic() + START_S + seconds
    try:
        while ours.poll(max(0, end - time.monotonic())):
            kind, value = ours.recv()
            if kind == "done":
                return value
            if kind == "failed":
                raise RuleError(value)
            if kind == "late":
                raise NotDone(f"not done after {seconds} s: {said}{value}")
            said = value
        raise NotDone(f"not done after {seconds} s: {said}")
    except EOFError:
        process.join()
        raise NotDone(f"its process ended with exit code {process.exitcode}: {said}") from None
    finally:
        process.kill()
        process.join()


def inside(pipe, work, args, seconds, file, quiet):
    """The process that `apart` starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at Ctrl-C, `apart` ends it
    tqdm.set_lock(threading.RLock())  # its usual lock would be left behind at a kill
    if quiet:
        sys.stdout = sys.stderr = open(os.devnull, "w")
    main, lock = threading.main_thread().ident, threading.Lock()

    def send(kind, value):
        with lock:
            pipe.send((kind, value))

    def late():
        stack = traceback.extract_stack(sys._current_frames()[main])
        own = [frame for frame in stack if file and frame.filename == os.path.abspath(file)]
        send("late", f"; in line {own[-1].lineno}, `{own[-1].line}`" if own else "")
    timer = threading.Timer(seconds, late)
    timer.daemon = True
    timer.start()
    try:
        found = work(lambda words: send("said", words), *args)
    except (Exception, SystemExit) as error:
        known = isinstance(error, (RuleError, ValueError))
        send("failed", f"{'' if known else f'{type(error).__name__}: '}{error}")
    else:
        send("done", found)
