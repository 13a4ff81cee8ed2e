"""`python -m lab rules`: the board of decoding rules."""
import shutil
import statistics
import time

import torch
from tqdm import tqdm

from data import toy
from lab import drawing
from lab.checkpoint import load
from lab.evaluate import Scenes, caption, decoded, now
from lab.intervals import wilson
from lab.results import FIGURES, measured, table, where, write_part
from mini_dimple import decode_ar
from rules import RuleError, resolve, resolve_look

FIXED = ("maskgit", "entropy", "margin", "left_to_right", "random_order")
RULES = ("maskgit:1", "maskgit:2", "maskgit:5", *(f"{name}:10" for name in FIXED),
         *(f"confident:{t}" for t in (0.3, 0.5, 0.7, 0.9, 0.99)), "remask:0.3", "remask:0.5",
         "eb_sampler:0.1", "fast_dllm:1", "klass", "blocks:16", "wino", "remdm",
         "dimple_public", "dimple_public:flat=1")


def load_pair(args, device):
    """-> model, tokenizer, AR model, preset. Raises ValueError unless they are a toy model's two
    phases, with one tokenizer."""
    model, tokenizer, origin = load(args.checkpoint, device)
    ar_model, ar_tokenizer, ar_origin = load(args.ar_checkpoint, device)
    for flag, path, said, phase in (
            ("--checkpoint", args.checkpoint, origin, "diffusion"),
            ("--ar-checkpoint", args.ar_checkpoint, ar_origin, "ar")):
        if said["trained_on"] not in toy.TOYS:
            raise ValueError(f"{flag} {path}: trained on your own pictures; only captions of toy "
                             "scenes can be graded")
        if said["phase"] != phase:
            raise ValueError(f"{flag} {path}: its last phase was {said['phase']!r}; needed is one "
                             f"that ended with {phase!r}")
    mine = tokenizer.merges, model.config, origin["trained_on"]
    if mine != (ar_tokenizer.merges, ar_model.config, ar_origin["trained_on"]):
        raise ValueError(f"--checkpoint {args.checkpoint} and --ar-checkpoint {args.ar_checkpoint} "
                         "are not of one run: name both")
    return model, tokenizer, ar_model, origin["trained_on"]


def grade_rule(way, scenes, alone=16):
    """Decode all scenes in batches by `way(rows)`, and the first `alone` of them one by one ->
    figures."""
    n, device, alone_s = len(scenes.images), scenes.images.device, []
    texts, iterations, passes, batch_s = caption(way, scenes)
    for i in range(min(alone, n)):
        start = now(device)
        way(torch.tensor([i]))
        alone_s.append(now(device) - start)
    right, formed = scenes.grade(texts)
    return dict(
        right=sum(right) / n, interval=wilson(sum(right), n), well_formed=sum(formed) / n,
        iterations=sum(iterations) / n, passes=sum(passes) / n,
        tokens_per_pass=scenes.response_tokens * n / sum(passes),
        ms_batch_1=1000 * statistics.median(alone_s), ms_batch_64=1000 * batch_s / n)


def pareto(rows):
    """Which rows no other row beats: none is at least as right in as few passes, and better in one
    of the two."""
    measures = lambda row: (row["right"], -row["passes"])

    def beaten(row):
        mine = measures(row)
        return any(measures(other) != mine and all(a >= b for a, b in zip(measures(other), mine))
                   for other in rows)
    return [not beaten(row) for row in rows]


def labels(rows):
    """rule -> its label in the picture: where marks lie almost on each other, one of them speaks
    for all."""
    texts, left = {}, sorted(rows, key=lambda row: (not row["yours"], not row["front"]))
    while left:
        first = left[0]
        same = [row for row in left if abs(row["passes"] - first["passes"]) < 0.4
                and abs(row["right"] - first["right"]) < 0.015]
        left = [row for row in left if row not in same]
        more = f" and {len(same) - 1} more" * (len(same) > 1)
        texts |= {row["rule"]: "" for row in same} | {first["rule"]: first["rule"] + more}
    return texts


def measure(args, device, mine, chosen, broken):
    """The rules `chosen`, text -> rule, on held-out scenes -> rows by passes, the AR baseline last.
    Rules that fail go into `broken`, text -> error; if none is left, the first is raised."""
    look = resolve_look(args.look)
    model, tokenizer, ar_model, preset = load_pair(args, device)
    scenes = Scenes(model.config, tokenizer, args.scenes, device, preset, args.length)
    rows, stems = [], [rule.__name__ for rule in chosen.values()]
    for text, rule in tqdm(chosen.items(), desc="rules", disable=None):
        try:
            figures = grade_rule(lambda rows: decoded(model, scenes[rows], rule, look), scenes)
        except (RuleError, ValueError) as error:  # one bad file of many does not stop the board
            broken[text] = error
            continue
        name = rule.__name__ if stems.count(rule.__name__) == 1 else text  # mine.py of two folders
        rows.append(dict(rule=name, yours=text in mine, **figures))
    if not rows:
        raise next(iter(broken.values()))  # a look that fails under every rule, say
    for row, front in zip(rows, pareto(rows)):
        row["front"] = front
    rows.sort(key=lambda row: row["passes"])
    greedy = lambda rows: decode_ar(ar_model, *scenes[rows][:2], model.config.window)
    baseline = dict(rule="AR phase, greedy, KV cache", yours=False, front=False)
    return [*rows, baseline | grade_rule(greedy, scenes)]


HEAD = ("rule", "", "fully right", "95% interval", "well formed", "iterations", "passes",
        "tokens per pass", "ms per caption, batch 1", "batch 64")


def cells(row):
    return [f"`{row['rule']}`", "●" * row["front"] + "★" * row["yours"], f"{row['right']:.1%}",
            "{:.1%} to {:.1%}".format(*row["interval"]), f"{row['well_formed']:.1%}",
            f"{row['iterations']:.2f}", f"{row['passes']:.2f}", f"{row['tokens_per_pass']:.2f}",
            f"{row['ms_batch_1']:.1f}", f"{row['ms_batch_64']:.2f}"]


def broken_cells(text, error, mine):
    words = " ".join(str(error).split()).replace("|", "\\|")
    return [f"`{text}`", "★" * mine, words, *[""] * (len(HEAD) - 3)]


def draw(path, rows):
    """The rules as marks: passes and share right."""
    names = labels(rows)

    def point(row):
        low, high = row["interval"]
        return row["passes"], 100 * row["right"], 100 * low, 100 * high, names[row["rule"]]
    groups = {"on the front": [r for r in rows if r["front"] and not r["yours"]],
              "others": [r for r in rows if not r["front"] and not r["yours"]],
              "yours": [r for r in rows if r["yours"]]}
    series = [drawing.Series(name, [point(row) for row in members], name == "on the front",
                             name != "others") for name, members in groups.items() if members]
    drawing.chart(path, series, "passes per caption", "fully right, %", "Decoding rules")


def board(args, device, command):
    """Prints the board, draws it, and returns its rows, dicts."""
    mine, chosen, broken, start = args.rule or [], {}, {}, time.perf_counter()
    for text in [*mine, *RULES]:  # yours first: its mistakes cost no wait
        try:
            chosen[text] = resolve(text)
        except ValueError as error:
            broken[text] = error
    if broken and len(broken) == len(set(mine)):
        raise next(iter(broken.values()))
    rows = measure(args, device, mine, chosen, broken)
    seconds = time.perf_counter() - start
    said = (f"{args.scenes} held-out scenes, {args.checkpoint.name}, look {args.look}; "
            f"{seconds:.0f} s. Interval: 95%, Wilson's, over scenes. ● on the front: no rule is "
            "as right in as few passes, and better in one of the two. ★ yours. An iteration asks "
            "the rule once, a pass runs the model once.")
    lines = [cells(row) for row in rows]
    lines += [broken_cells(text, error, text in mine) for text, error in broken.items()]
    text = f"{said}\n\n{table(HEAD, lines)}"
    print(f"{where(device)}; {text}")
    draw(args.picture, rows[:-1])
    print(f"\nthe front as a picture: {args.picture}")
    if args.write:
        shutil.copy(args.picture, FIGURES / "rules.png")
        write_part("rules", f"{measured(command, device)}\n\n{text}")
    return rows + [dict(rule=text, yours=text in mine, error=str(error))
                   for text, error in broken.items()]
