"""A folder of rules on the board: each file is measured in a process of its own, so that whatever
it does, the others have their rows."""
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from lab.checkpoint import ROOT
from rules import RuleError, named

# what the process needs of the command line
OPTIONS = ("checkpoint", "weak_checkpoint", "ar_checkpoint", "look", "length", "scenes", "timeout")
CHILD = (f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
         "from lab.board import measure_apart; measure_apart(*sys.argv[1:])")


def files_of(text):
    """The .py files of the folder that `--rule` names, by name; [] if `text` names something else.
    Raises ValueError for a folder with numbers, or without such a file; OSError."""
    name, colon, numbers = text.rpartition(":")
    if text.split(":")[0] in named():  # the gallery's, whatever is in the current folder
        return []
    if not os.path.isdir(text):
        if colon and os.path.isdir(name):
            raise ValueError(f"--rule {text}: {name} is a folder, and takes no numbers: {numbers}")
        return []
    files = [str(path) for path in sorted(Path(text).iterdir()) if path.name.endswith(".py")
             and not path.name.startswith((".", "__init__.")) and not path.is_dir()]
    if not files:
        raise ValueError(f"--rule {text}: the folder holds no .py file")
    return files


def apart(text, args, device):
    """Have `board.measure_apart` measure a file's rule -> what it wrote. Raises RuleError with what
    went wrong.

    The process reads nothing, and what it prints is thrown away. Once it has ended, or its time is
    over, what it has started is ended, too (on POSIX; what made itself a session lives on)."""
    options = json.dumps({name: getattr(args, name) for name in OPTIONS}, default=str)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path, nowhere = Path(folder) / "outcome.json", subprocess.DEVNULL
        process = subprocess.Popen(
            [sys.executable, "-B", "-c", CHILD, text, device.type, options, path],
            stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)
        try:
            code = process.wait(args.timeout)
        except subprocess.TimeoutExpired:
            raise RuleError(f"not done after {args.timeout} s (--timeout)") from None
        finally:  # at Ctrl-C, too
            process.kill()
            if hasattr(os, "killpg"):
                with suppress(ProcessLookupError, PermissionError):  # nothing is left of its group
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError):
            how = f"exit status {code}"
            if code < 0:
                how = f"signal {-code}, {signal.strsignal(-code)}"
            raise RuleError(f"its process ended before it was measured: {how}") from None
    if "error" in found:
        raise RuleError(found["error"])
    return found
