"""`python -m lab worlds`: rules in worlds known exactly (data/worlds.py): how often they are right,
and how far what they sample is from the true odds."""
import itertools
import shutil

from tqdm import tqdm

from data import toy
from data.worlds import all_worlds, by_chance, by_rule, measure
from lab import drawing
from lab.board import labels
from lab.checkpoint import load
from lab.evaluate import one_scene
from lab.results import FIGURES, measured, table_of, write_part
from lab.shell import reporting
from mini_dimple import prefilled
from rules import resolve

RULES = ("confident:0.9", "peak:0.9", "confident:0.5", "maskgit:1", "random_order:1",
         "dimple_public:random=1", "eb_sampler:0.5", "halving", "middle_out", "middle_out:sure=1")
TRUE = "the true odds"
WORDS = ("Each cell: windows that are right, in %; the distance (total variation) from the true "
         "odds, at temperature 1; choices that took the likelier value, in %, of the right "
         "windows; passes. {n:,} windows; the distance of the true odds is what so many draws from "
         "them show by chance.")


def cell(row, temperature):
    distance = [f"{row['distance']:.3f}"] * (temperature == 1)
    passes = [f"{row['passes']:.3g}"] * (row["rule"] != TRUE)
    likelier = "-" if row["likelier"] is None else f"{100 * row['likelier']:.3g}"
    return ", ".join([f"{100 * row['right']:.4g}", *distance, likelier, *passes])


def draw(path, rows):
    """Passes and distance of each rule, a colour for each world."""
    series, unmarked = [], dict(yours=False, front=False)
    for world in dict.fromkeys(row["world"] for row in rows):
        mine = [row for row in rows if row["world"] == world]
        names = labels([row | dict(right=row["distance"], **unmarked) for row in mine])
        series.append(drawing.Series(world, [
            (row["passes"], row["distance"], None, None, names[row["rule"]]) for row in mine],
            False, False))
    drawing.chart(path, series, "passes per window", "distance from the true odds",
                  "Rules in worlds known exactly, temperature 1")


def worlds(args, device, command):
    """Prints a table for each temperature, draws that of temperature 1, and returns the rows."""
    with reporting(ValueError, OSError):
        rules = {text: resolve(text) for text in [*(args.rule or []), *(args.only or RULES)]}
        every = all_worlds()
        for path in args.checkpoint or []:
            model, tokenizer, origin = load(path)
            one, found = one_scene(model.config, tokenizer, toy.of(origin), device)
            every.append(found._replace(
                name=f"captions, {path.stem}",
                look=lambda B, one=one, model=model: prefilled(model, *one[[0] * B][:2])))
    rows = [dict(rule=TRUE, world=world.name, temperature=1.0, right=1.0, passes=0,
                 distance=by_chance(world, args.samples),
                 likelier=(world.odds * world.likely).sum().item()) for world in every]
    asked = list(itertools.product(args.temperature, rules, every))
    for temperature, text, world in tqdm(asked, desc="worlds", disable=None):
        found = measure(world, by_rule(world, rules[text], temperature), args.samples)
        rows.append(dict(rule=text, world=world.name, temperature=temperature, **found))
    parts = []
    for temperature in args.temperature:
        lines = {}
        for row in rows:
            if row["temperature"] == temperature or row["rule"] == TRUE:
                lines.setdefault(row["rule"], {"rule": row["rule"]})[row["world"]] = cell(
                    row, temperature)
        parts.append(f"Temperature {temperature:g}:\n\n{table_of(lines.values())}")
    text = "\n\n".join([WORDS.format(n=args.samples), *parts])
    print(text)
    if 1 in args.temperature:
        draw(args.picture, [row for row in rows if row["temperature"] == 1 and row["rule"] != TRUE])
    if args.write:
        write_part("worlds", f"{measured(command, device)}\n\n{text}")
        if args.picture.exists():
            shutil.copy(args.picture, FIGURES / "worlds.png")
    return rows
