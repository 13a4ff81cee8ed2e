"""Check your exercises, from the repository's folder: `python -m exercises` all of them, a line
each; `python -m exercises 3` one, with its whole lesson or, once it passes, what it shows."""
import contextlib
import importlib
import importlib.util
import io
import shutil
import sys
import textwrap
import time
import traceback
from pathlib import Path

import pytest

from exercises.checks import explained, teach
from lab.shell import Parser, positive, script

HERE = Path(__file__).parent
NAMES = {int(path.stem[:2]): path.stem for path in sorted(HERE.glob("[0-9]*.py"))}


def parse(argv=None):
    parser = Parser(prog="python -m exercises", description=__doc__)
    option = parser.add_argument
    option("numbers", nargs="*", type=positive, metavar="N", help=f"1 to {len(NAMES)}: shows these "
           "exercises' lessons, or what they show (default: all, a line each)")
    where = parser.add_mutually_exclusive_group().add_argument
    where("--folder", type=Path, default=HERE, metavar="DIR",
          help="with the files to check (default: exercises, yours)")
    where("--answers", dest="folder", action="store_const", const=HERE / "answers",
          help="checks ours, in exercises/answers")
    return parser, parser.parse_args(argv)


def load(path):
    """A student's file -> its module. Fails with a lesson if it does not run."""
    teach(path.is_file(), f"There is no such file in {path.parent}.")
    spec = importlib.util.spec_from_file_location(f"exercise_{path.stem}", path)
    # dataclasses look their module up there
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        teach(False, f"Line {error.lineno}: {(error.text or '').strip()}\n"
              f"{type(error).__name__}: {error.msg}")
    except (Exception, SystemExit) as error:
        teach(False, explained(error, module))
    return module


def check(path):
    """-> whether the exercise passes; its lesson, or what it shows."""
    try:
        checker = importlib.import_module(f"exercises.checks.{path.stem[3:]}")
        return True, checker.test_exercise.run(load(path))
    except pytest.fail.Exception as failure:
        return False, str(failure)
    except Exception as error:  # so that the others are still checked
        return False, (f"The checker did not expect this, and failed: {type(error).__name__}: "
                       f"{error}\n\n{traceback.format_exc()}")


def in_a_line(number, path):
    """An exercise in one line, without what it prints itself -> whether it passes."""
    start = f"{number:2d}  {path.stem:{max(map(len, NAMES.values()))}s}  "
    print(start, end="", flush=True)
    with contextlib.redirect_stdout(io.StringIO()):
        passes, text = check(path)
    width = max(20, shutil.get_terminal_size().columns - len(start))
    print("passes" if passes else textwrap.shorten(text, width, placeholder=" ..."))
    return passes


def in_full(number, path):
    """An exercise with its lesson, or with what it shows -> whether it passes."""
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    print(f"Exercise {number}: {shown}\n", flush=True)
    start = time.perf_counter()
    passes, text = check(path)
    seconds = time.perf_counter() - start
    print(f"{text}\n\n{'passes' if passes else 'does not pass yet'} ({seconds:.1f} s)\n")
    return passes


@script
def main(argv=None):
    parser, args = parse(argv)
    if unknown := set(args.numbers) - set(NAMES):
        parser.error(f"{min(unknown)}: the exercises are 1 to {len(NAMES)}")
    if not args.folder.is_dir():
        parser.error(f"--folder {args.folder}: there is no such folder")
    way, numbers = (in_full, args.numbers) if args.numbers else (in_a_line, NAMES)
    passed = {number: way(number, args.folder.absolute() / f"{NAMES[number]}.py")
              for number in dict.fromkeys(numbers)}
    left = [number for number, passes in passed.items() if not passes]
    if len(passed) > 1:
        own = left and args.folder == HERE
        following = f"; next: python -m exercises {left[0]}" if own else ""
        print(f"{len(passed) - len(left)} of {len(passed)} pass{following}")
    if left:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
