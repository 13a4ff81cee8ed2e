"""Measure Mini-Dimple: `python -m lab rules` compares decoding rules, `worlds` holds them against
odds that are known, `speed` times decoding and training, `claims` puts the paper's claims to the
test, `show` makes a page to watch decodings on.

Figures of one table come from one run or, on the board, from runs of the same code on one
machine, so that its rows can be compared."""
import json
import shlex
import sys
from pathlib import Path

import torch

# before a data/ or rules/ of the folder that this is called from
sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from data.worlds import SAMPLES
from lab.board import BLOCKS, N_SCENES, TIMEOUT_S, board
from lab.checkpoint import SHIPPED_AR, SHIPPED_WEAK
from lab.claims import CLAIMS, claims
from lab.intervals import T95
from lab.shell import (OPTIONS, Parser, between, options, pick_device, positive, reporting, script,
                       temperature)
from lab.show import show
from lab.speed import RULES, WAYS, decode_speed, training_speed
from lab.worlds import worlds
from rules import RuleError
from train import PRESETS


def parse(argv=None):
    parser = Parser(prog="python -m lab", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    of_weights = lambda default, help: OPTIONS["checkpoint"] | dict(default=default, help=help)

    def add(name, about, work, group=commands):
        command = group.add_parser(name, help=about, description=about)
        command.set_defaults(work=work)
        if name == "worlds":  # whose looks compute on the CPU
            command.set_defaults(device="cpu")
        else:
            options(command, "device")
        if name != "show":
            command.add_argument("--write", action="store_true",
                                 help="write the tables and pictures into docs/, too")
        if name != "claims":
            command.add_argument("--json", type=Path, metavar="F",
                                 help="write the figures there, too")
        return command

    command = add("rules", "the board of decoding rules", board)
    options(command, "checkpoint", "look", "length")
    option = command.add_argument
    option("--ar-checkpoint", **of_weights(SHIPPED_AR, "likewise"))
    option("--weak-checkpoint", **of_weights(SHIPPED_WEAK, "likewise, less trained"))
    option("--rule", action="append", metavar="RULE",
           help="a rule more: path/to/mine.py, maskgit:3, or a folder of files, each then measured "
           "in a process of its own (repeatable)")
    option("--timeout", type=positive, default=TIMEOUT_S, metavar="S",
           help=f"seconds for each file of a folder (default: {TIMEOUT_S})")
    option("--only", nargs="+", metavar="RULE", help="these in place of the board's own rules")
    option("--scenes", type=positive, default=N_SCENES, metavar="N",
           help=f"held-out (default: {N_SCENES})")
    samples = dict(type=positive, default=SAMPLES, metavar="N",
                   help=f"windows that a distance is measured on (default: {SAMPLES})")
    option("--samples", **samples)
    option("--csv", type=Path, metavar="F", help="write the figures there, too")
    option("--picture", type=Path, default=Path("out/rules.png"), metavar="F",
           help="default: out/rules.png")

    option = add("worlds", "rules in worlds known exactly", worlds).add_argument
    option("--rule", action="append", metavar="RULE", help="a rule more (repeatable)")
    option("--only", nargs="+", metavar="RULE", help="these in place of the usual ones")
    option("--checkpoint", action="append", type=Path, metavar="F",
           help="the captions of these weights, too (repeatable)")
    option("--temperature", nargs="+", type=temperature, default=[1.0], metavar="T",
           help="default: 1, at which alone there is a distance")
    option("--samples", **samples)
    option("--picture", type=Path, default=Path("out/worlds.png"), metavar="F",
           help="default: out/worlds.png")

    speed = commands.add_parser("speed", help="wall time of decoding, or of training steps")
    kinds = speed.add_subparsers(dest="kind", required=True, metavar="decode|training")
    command = add("decode", "wall time of decoding", decode_speed, kinds)
    options(command, "checkpoint")
    option = command.add_argument
    option("--ar-checkpoint", **of_weights(SHIPPED_AR, "likewise"))
    option("--repeats", type=positive, default=60, metavar="N",
           help="captions timed at batch 1 (default: 60)")
    option("--batch", type=positive, nargs="+", default=[1, 64], metavar="B",
           help="batch sizes (default: 1 64)")
    for name, used in (("rule", RULES), ("look", WAYS)):
        option(f"--{name}", action="append", metavar=name.upper(),
               help=f"repeatable (default: {', '.join(used)})")
    option("--compile", action="store_true", help="torch.compile the passes of decoding")
    option = add("training", "wall time of training steps", training_speed, kinds).add_argument
    option("--repeats", type=positive, default=30, metavar="N",
           help="steps timed in each phase (default: 30)")
    option("--preset", choices=PRESETS, default="tiny", help="default: tiny")
    option("--compile", action="store_true", help="torch.compile, as train.py --compile does")

    option = add("claims", "the paper's claims: " + "; ".join(
        f"{name}, {about}" for name, (_, _, about) in CLAIMS.items()), claims).add_argument
    option("names", nargs="*", metavar="CLAIM",
           help=f"{', '.join(CLAIMS)} (default: all, in this order)")
    option("--out", type=Path, default=Path("out/claims"), metavar="DIR",
           help="tables, pictures and models (default: out/claims); what is there is used again, "
           "so delete it after a change of code")
    option("--seeds", type=between(int, 1, len(T95) + 2), default=5, metavar="N",
           help="train with seeds 0 to N - 1 at most (default: 5); most models have fewer")
    option("--jobs", type=positive, default=1, metavar="N",
           help="trainings at once (default: 1; a large GPU takes 8)")
    option("--scenes", type=positive, default=300, metavar="N", help="held-out (default: 300)")
    option("--quick", action="store_true",
           help="a few steps, one seed, a few scenes: shows that it runs, nothing else")

    command = add("show", "decodings side by side, as a page for the browser", show)
    options(command, "checkpoint", "look", "length", "temperature", seed=dict(
        default=9, help="of the held-out scene and of sampling (default: 9)"))
    option = command.add_argument
    option("--rule", action="append", metavar="RULE",
           help="repeatable: path/to/mine.py, maskgit:3, ... (default: confident:0.9)")
    option("--on", nargs="+", choices=BLOCKS, default=["trained", "exact"], metavar="MODEL",
           help=f"{', '.join(BLOCKS)}: the exact posterior is the perfect model of the toy set "
           "(default: trained exact)")
    option("--weak-checkpoint", **of_weights(SHIPPED_WEAK, "likewise, less trained"))
    option("--data", type=Path, metavar="F",
           help="show this JSON file instead, of any model (docs/viewer.md)")
    option("--picture", type=Path, default=Path("out/decoding.html"), metavar="F",
           help="default: out/decoding.html")
    return parser, parser.parse_args(argv)


@script
def main(argv=None):
    parser, args = parse(argv)
    words = sys.argv[1:] if argv is None else argv
    command = " ".join(["python -m lab", *map(shlex.quote, words)]).replace(" --write", "")
    suffix = {"rules": ".png", "worlds": ".png", "show": ".html"}.get(args.command)
    with reporting(ValueError, OSError):
        device = pick_device(args.device)
        if suffix and args.picture.suffix.lower() != suffix:
            raise ValueError(f"--picture {args.picture}: must end in {suffix}")
        for name in ("json", "csv", "picture"):  # before the measurement, not after
            if path := getattr(args, name, None):
                path.parent.mkdir(parents=True, exist_ok=True)
    with reporting(RuleError, OSError, torch.OutOfMemoryError):
        figures = args.work(args, device, command)
        if args.command != "claims" and args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
