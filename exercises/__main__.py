"""Check your exercises, in exercises/mine: `python -m exercises` all of them, a line each;
`python -m exercises 3` one, with its whole lesson or, once it passes, what it shows. The first time
it copies them there."""
import shutil
import textwrap
from pathlib import Path

from exercises.checks import check
from lab.grading import apart
from lab.shell import Parser, positive, script
from rules import RuleError

HERE = Path(__file__).parent
MINE = HERE / "mine"  # git ignores it: what is solved there and what is pulled never conflict
NAMES = {int(path.stem[:2]): path.stem for path in sorted(HERE.glob("[0-9]*.py"))}
TIMEOUT_S = 120


def parse(argv=None):
    parser = Parser(prog="python -m exercises", description=__doc__)
    option = parser.add_argument
    option("numbers", nargs="*", type=positive, metavar="N", help=f"1 to {len(NAMES)}: shows these "
           "exercises' lessons, or what they show (default: all, a line each)")
    option("--timeout", type=positive, default=TIMEOUT_S, metavar="S",
           help="seconds that the check of one file may take (default: %(default)s)")
    where = parser.add_mutually_exclusive_group().add_argument
    where("--folder", type=Path, default=MINE, metavar="DIR",
          help="with the files to check (default: exercises/mine, yours)")
    where("--answers", dest="folder", action="store_const", const=HERE / "answers",
          help="checks ours, in exercises/answers")
    return parser, parser.parse_args(argv)


def begin():
    """Copies the exercises that are not in `MINE` yet."""
    MINE.mkdir(exist_ok=True)
    new = [name for name in NAMES.values() if not (MINE / f"{name}.py").exists()]
    for name in new:
        shutil.copy(HERE / f"{name}.py", MINE)
    if new:
        print(f"{len(new)} exercises are new in exercises/mine: solve them there\n")


def checked(path, timeout, quiet):
    """-> whether a file passes; its lesson, or what it shows; seconds. In a process of its own."""
    try:
        return apart(check, path, seconds=timeout, file=path, quiet=quiet)
    except RuleError as error:  # not done in time, or its process has ended
        return False, str(error), timeout


def in_a_line(number, path, timeout):
    """An exercise in one line, without what it prints itself -> whether it passes."""
    start = f"{number:2d}  {path.stem:{max(map(len, NAMES.values()))}s}  "
    print(start, end="", flush=True)
    passes, text, _ = checked(path, timeout, quiet=True)
    width = max(20, shutil.get_terminal_size().columns - len(start))
    print("passes" if passes else textwrap.shorten(text, width, placeholder=" ..."))
    return passes


def in_full(number, path, timeout):
    """An exercise with its lesson, or with what it shows -> whether it passes."""
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    print(f"Exercise {number}: {shown}\n", flush=True)
    passes, text, seconds = checked(path, timeout, quiet=False)
    print(f"{text}\n\n{'passes' if passes else 'does not pass yet'} ({seconds:.1f} s)\n")
    return passes


@script
def main(argv=None):
    parser, args = parse(argv)
    if unknown := set(args.numbers) - set(NAMES):
        parser.error(f"{min(unknown)}: the exercises are 1 to {len(NAMES)}")
    if args.folder == MINE:
        begin()
    if not args.folder.is_dir():
        parser.error(f"--folder {args.folder}: there is no such folder")
    way, numbers = (in_full, args.numbers) if args.numbers else (in_a_line, NAMES)
    passed = {number: way(number, args.folder.absolute() / f"{NAMES[number]}.py", args.timeout)
              for number in dict.fromkeys(numbers)}
    left = [number for number, passes in passed.items() if not passes]
    if len(passed) > 1:
        own = left and args.folder == MINE
        following = f"; next: python -m exercises {left[0]}" if own else ""
        print(f"{len(passed) - len(left)} of {len(passed)} pass{following}")
    if left:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
