"""Measure Mini-Dimple: `python -m lab rules` compares decoding rules, `speed` times decoding and
training, `claims` puts the paper's claims to the test, `show` makes a page to watch decodings on.

Figures of one table come from one run or, on the board, from runs of the same code on one
machine, so that its rows can be compared."""
import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

# before a data/ or rules/ of the folder that this is called from
sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from lab.board import N_SCENES, TIMEOUT_S, board
from lab.checkpoint import SHIPPED, SHIPPED_AR, SHIPPED_WEAK
from lab.claims import CLAIMS, claims
from lab.intervals import T95
from lab.shell import DEVICE, Parser, pick_device, positive, script, seed, temperature
from lab.speed import decode_speed, training_speed
from lab.viewer import ON, show
from rules import LOOKS, RuleError
from train import PRESETS


def seeds(text):
    """argparse type: how many seeds; `T95` reaches as far."""
    number = positive(text)
    if number > len(T95) + 1:
        raise argparse.ArgumentTypeError(f"must be at most {len(T95) + 1}")
    return number


def parse(argv=None):
    parser = Parser(prog="python -m lab", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, about, group=commands):
        command = group.add_parser(name, help=about, description=about)
        command.add_argument("--device", default="auto", **DEVICE)
        if name != "show":
            command.add_argument("--write", action="store_true",
                                 help="write the tables and pictures into docs/, too")
        if name != "claims":
            command.add_argument("--json", type=Path, metavar="F",
                                 help="write the figures there, too")
        return command.add_argument

    def weights(option, ar=True, weak=False):
        option("--checkpoint", type=Path, default=SHIPPED, metavar="F",
               help="default: the weights that come with Mini-Dimple")
        if ar:
            option("--ar-checkpoint", type=Path, default=SHIPPED_AR, metavar="F", help="likewise")
        if weak:
            option("--weak-checkpoint", type=Path, default=SHIPPED_WEAK, metavar="F",
                   help="likewise: of an earlier step of the same run")

    def passes(option):
        option("--look", default="prefilled", metavar="LOOK",
               help=f"{', '.join(LOOKS)}, or path/to/mine.py (default: prefilled)")
        option("--length", type=positive, metavar="N",
               help="window, in tokens (default: the longest trained)")

    option = add("rules", "the board of decoding rules")
    weights(option, weak=True)
    option("--rule", action="append", metavar="RULE",
           help="a rule more: path/to/mine.py, maskgit:3, or a folder of files, each then measured "
           "in a process of its own (repeatable)")
    option("--timeout", type=positive, default=TIMEOUT_S, metavar="S",
           help=f"seconds for each file of a folder (default: {TIMEOUT_S})")
    option("--only", nargs="+", metavar="RULE", help="these in place of the board's own rules")
    passes(option)
    option("--scenes", type=positive, default=N_SCENES, metavar="N",
           help=f"held-out (default: {N_SCENES})")
    option("--csv", type=Path, metavar="F", help="write the figures there, too")
    option("--picture", type=Path, default=Path("out/rules.png"), metavar="F",
           help="default: out/rules.png")

    speed = commands.add_parser("speed", help="wall time of decoding, or of training steps")
    kinds = speed.add_subparsers(dest="kind", required=True, metavar="decode|training")
    option = add("decode", "wall time of decoding", kinds)
    weights(option)
    option("--repeats", type=positive, default=60, metavar="N",
           help="captions timed at batch 1 (default: 60)")
    option("--compile", action="store_true", help="torch.compile the passes of decoding")
    option = add("training", "wall time of training steps", kinds)
    option("--repeats", type=positive, default=30, metavar="N",
           help="steps timed in each phase (default: 30)")
    option("--preset", choices=PRESETS, default="tiny", help="default: tiny")
    option("--compile", action="store_true", help="torch.compile, as train.py --compile does")

    option = add("claims", "the paper's claims: " + "; ".join(
        f"{name}, {about}" for name, (_, _, about) in CLAIMS.items()))
    option("names", nargs="*", metavar="CLAIM",
           help=f"{', '.join(CLAIMS)} (default: all, in this order)")
    option("--out", type=Path, default=Path("out/claims"), metavar="DIR",
           help="tables, pictures and models (default: out/claims); what is there is used again")
    option("--seeds", type=seeds, default=5, metavar="N", help="train with seeds 0 to N - 1 at "
           "most (default: 5); most models have fewer")
    option("--jobs", type=positive, default=1, metavar="N",
           help="trainings at once (default: 1; a large GPU takes 8)")
    option("--scenes", type=positive, default=300, metavar="N", help="held-out (default: 300)")
    option("--quick", action="store_true",
           help="a few steps, one seed, a few scenes: shows that it runs, nothing else")

    option = add("show", "decodings side by side, as a page for the browser")
    option("--rule", action="append", metavar="RULE",
           help="repeatable: path/to/mine.py, maskgit:3, ... (default: confident:0.9)")
    option("--on", nargs="+", choices=ON, default=["trained", "exact"], metavar="MODEL",
           help=f"{', '.join(ON)}: the exact posterior is the perfect model of the toy set "
           "(default: trained exact)")
    option("--seed", type=seed, default=9, metavar="S",
           help="of the held-out scene and of sampling (default: 9)")
    option("--temperature", type=temperature, default=0.0, metavar="T",
           help="0 (default) proposes the most probable token")
    passes(option)
    weights(option, ar=False, weak=True)
    option("--data", type=Path, metavar="F",
           help="show this JSON file instead, of any model (docs/viewer.md)")
    option("--picture", type=Path, default=Path("out/decoding.html"), metavar="F",
           help="default: out/decoding.html")
    return parser, parser.parse_args(argv)


def run(args, command):
    """Raises ValueError, OSError, RuleError."""
    device = pick_device(args.device)
    if args.command == "claims":
        unknown = [name for name in args.names if name not in CLAIMS]
        if unknown:
            raise ValueError(f"claims: {unknown[0]!r} is none; choose from {', '.join(CLAIMS)}")
        if args.quick and args.write:
            raise ValueError("--quick and --write: its figures mean nothing; choose one")
        return claims(args, device, command)
    suffix = {"rules": ".png", "show": ".html"}.get(args.command)
    if suffix and args.picture.suffix.lower() != suffix:
        raise ValueError(f"--picture {args.picture}: must end in {suffix}")
    for path in filter(None, (args.json, *(getattr(args, name, None)
                                           for name in ("picture", "csv")))):
        path.parent.mkdir(parents=True, exist_ok=True)  # before the measurement, not after
    measure = {"rules": board, "show": show, "decode": decode_speed, "training": training_speed}
    figures = measure[getattr(args, "kind", args.command)](args, device, command)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


@script
def main(argv=None):
    parser, args = parse(argv)
    words = sys.argv[1:] if argv is None else argv
    command = " ".join(["python -m lab", *map(shlex.quote, words)])
    try:
        with parser.reporting(ValueError, OSError, RuleError, torch.OutOfMemoryError):
            run(args, command.replace(" --write", ""))
    except KeyboardInterrupt:
        going_on = "; the same command goes on with what is trained" * (args.command == "claims")
        print(f"\n{parser.prog}: stopped{going_on}", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
