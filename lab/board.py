"""`python -m lab rules`: the board of decoding rules, each on the perfect model of the toy set, on
trained weights, and on weaker ones, greedy and sampled."""
import argparse
import contextlib
import csv
import faulthandler
import hashlib
import io
import json
import os
import shutil
import statistics
import sys
import time
from typing import NamedTuple

import torch
from tqdm import tqdm

from data import toy
from data.exact import fewest_passes
from lab import drawing
from lab.checkpoint import ROOT, SHIPPED, SHIPPED_AR, SHIPPED_WEAK, load, write
from lab.evaluate import THRESHOLD, Scenes, caption, decoded, exact_way, mistakes, now, shares
from lab.grading import apart, files_of
from lab.intervals import mean_interval, wilson
from lab.models import digest
from lab.results import FIGURES, measured, table, where, write_part
from lab.trace import counting
from mini_dimple import decode_ar
from rules import RuleError, resolve, resolve_look

BASE, ONE_BY_ONE = f"confident:{THRESHOLD}", "maskgit:1"
COUNTS = [f"{name}:{k}" for name in ("random_order", "maskgit", "margin", "entropy",
                                     "left_to_right") for k in (1, 2, 4)]
RULES = (*(f"confident:{t}" for t in (0.3, 0.5, 0.7, 0.9, 0.95)), *COUNTS,
         *(f"eb_sampler:{bound}" for bound in (0.1, 0.5, 0.8)), "fast_dllm:1", "klass", "blocks:16",
         "wino", "remdm", "remask:0.3", "remask:0.5", "dimple_public", "dimple_public:flat=1")
BLOCKS = ("exact", "trained", "weak")
WAYS = {"greedy": 0.0, "sampled": 1.0}  # temperature
WORSE = 0.02  # than one token at a time: too much for the front
KEPT = ROOT / "weights" / "board.json"
CODE = ("mini_dimple.py", "tokenizer.py", "data/*.py", "rules/__init__.py", "lab/evaluate.py",
        "lab/intervals.py", "lab/board.py")
N_SCENES = 300
TIMEOUT_S = 600   # for a file of a folder
MEMORY = 2 ** 32  # bytes that it may take on a CPU


class Weights(NamedTuple):
    """What the board decodes with, all of one toy set."""
    board: toy.Toy
    tokenizer: object
    models: dict  # "trained", "weak" -> Dimple
    ar: object


def load_weights(args, device, weak=True):
    """-> Weights. Raises ValueError unless they are a toy model's, with one tokenizer, in the
    phases that are needed."""
    found = {"--checkpoint": (args.checkpoint, "diffusion"),
             "--ar-checkpoint": (args.ar_checkpoint, "ar"),
             **({"--weak-checkpoint": (args.weak_checkpoint, "diffusion")} if weak else {})}
    said = {}
    for flag, (path, phase) in found.items():
        model, tokenizer, origin = said[flag] = load(path, device)
        if toy.of(origin) is None:
            raise ValueError(f"{flag} {path}: trained on your own pictures; only captions of toy "
                             "scenes can be graded")
        if origin["phase"] != phase:
            raise ValueError(f"{flag} {path}: its last phase was {origin['phase']!r}; needed is "
                             f"one that ended with {phase!r}")
        first, *_ = said.values()
        if (tokenizer.merges, model.config, toy.of(origin)) != (
                first.tokenizer.merges, first.model.config, toy.of(first.origin)):
            raise ValueError(f"--checkpoint {args.checkpoint} and {flag} {path} are not of one "
                             "run, or of one toy set: name all of them")
    models = {"trained": said["--checkpoint"].model}
    if weak:
        models["weak"] = said["--weak-checkpoint"].model
    return Weights(toy.of(first.origin), first.tokenizer, models, said["--ar-checkpoint"].model)


# ---------------------------------------------------------------- one rule

class Outcome(NamedTuple):
    """Of one rule in one block, greedy or sampled: what the pairs need, one of each per scene, and
    the figures."""
    right: list
    passes: list
    figures: dict


def grade_rule(way, scenes):
    """Decode all scenes in batches by `way(rows)` -> Outcome."""
    found = caption(way, scenes)
    wrong, n = mistakes(found, scenes.split, scenes.board), len(found.texts)
    right = [one is None for one in wrong]
    low, high = wilson(sum(right), n)
    return Outcome(right, found.passes, dict(
        right=sum(right) / n, right_low=low, right_high=high, passes=statistics.fmean(found.passes),
        iterations=statistics.fmean(found.iterations), mistakes=shares(wrong),
        ms_batch_64=1000 * found.seconds / n))


def alone(way, scenes, model, n=16):
    """The first scenes, decoded one by one -> figures: median time, and the positions that the
    model's transformer computed for one caption."""
    seconds, n = [], min(n, len(scenes.images))
    with counting(model) as tokens:
        for i in range(n):
            start = now(scenes.images.device)
            way(torch.tensor([i]))
            seconds.append(now(scenes.images.device) - start)
    return dict(ms_batch_1=1000 * statistics.median(seconds), tokens_computed=sum(tokens) / n)


def against(outcome, base):
    """A rule beside `BASE` in the same block, scene by scene."""
    pairs = list(zip(outcome.right, base["right"]))
    more, low, high = mean_interval([[a - b for a, b in zip(outcome.passes, base["passes"])]])
    return dict(won=sum(a > b for a, b in pairs), lost=sum(a < b for a, b in pairs),
                more_passes=more, more_passes_low=low, more_passes_high=high)


class Measuring:
    """The scenes and ways of decoding them that all rules share. Raises ValueError for weights or a
    look that do not do."""

    def __init__(self, args, device):
        self.weights, self.look = load_weights(args, device), resolve_look(args.look)
        self.scenes = Scenes(self.weights.models["trained"].config, self.weights.tokenizer,
                             args.scenes, device, self.weights.board, args.length)

    def way(self, block, rule, temperature):
        if block == "exact":
            return exact_way(self.scenes, rule, temperature)
        model = self.weights.models[block]
        return lambda rows: decoded(model, self.scenes[rows], rule, self.look,
                                    temperature=temperature)

    def rule(self, rule, say=lambda words: None):
        """-> {(block, way): Outcome}. `say(words)` tells how far it is, iteration by iteration."""
        found = {}

        def told(step):
            say(f"on {block}, {name}: iteration {step.iteration + 1} of at most {step.limit}")
            return rule(step)
        for block in BLOCKS:
            for name, temperature in WAYS.items():
                way = self.way(block, told, temperature)
                found[block, name] = outcome = grade_rule(way, self.scenes)
                if (block, name) == ("trained", "greedy"):
                    outcome.figures.update(alone(way, self.scenes, self.weights.models["trained"]))
        return found

    def ar(self):
        """The baseline's figures."""
        model, config = self.weights.ar, self.scenes.config
        way = lambda rows: decode_ar(model, *self.scenes[rows][:2], config.window)
        return grade_rule(way, self.scenes).figures | alone(way, self.scenes, model)


def measure_apart(say, text, args, device):
    """`Measuring.rule` of a file, in the process that `apart` starts."""
    measuring = Measuring(args, device)  # first: the file may change anything
    return measuring.rule(resolve(text), say)


# ---------------------------------------------------------------- rows, and those that are kept

def rows_of(name, yours, found, base):
    """A rule's outcomes as rows, one for each block and way."""
    return [dict(rule=name, yours=yours, block=block, way=way, **outcome.figures,
                 **against(outcome, base[f"{block} {way}"]))
            for (block, way), outcome in found.items()]


def stamp(text):
    """What a kept row of this rule depends on, but for the weights."""
    file = f"rules/{text.split(':')[0]}.py"
    return digest(*CODE, *[file] if (ROOT / file).exists() else [])


def setting(args, device):
    """What all kept rows depend on; None if rows so measured are not kept."""
    paths = args.checkpoint, args.weak_checkpoint, args.ar_checkpoint
    usual = (paths == (SHIPPED, SHIPPED_WEAK, SHIPPED_AR) and args.look == "prefilled"
             and args.length is None and device.type == "cpu")
    return dict(scenes=args.scenes, weights=[
        hashlib.sha256(path.read_bytes()).hexdigest()[:8] for path in paths]) if usual else None


def untimed(row):
    """A row without its times: another machine's cannot be compared with this one's."""
    return {key: value for key, value in row.items() if not key.startswith("ms_")}


def kept_rows(wanted):
    """-> what `KEPT` has for this setting and this code: {"base": .., "rows": {rule: rows}}."""
    nothing = dict(setting=wanted, base={}, rows={}, stamps={})
    try:
        kept = json.loads(KEPT.read_text("utf-8"))
        if wanted is None or kept["setting"] != wanted or kept["stamps"][BASE] != stamp(BASE):
            return nothing
        rows = {rule: rows for rule, rows in kept["rows"].items()
                if kept["stamps"][rule] == stamp(rule)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return nothing
    return kept | dict(rows=rows)


def mark_front(rows):
    """Mark what no other row of its block and way beats, among rules at most WORSE below one token
    at a time: none of these is at least as right in as few passes, and better in one of the two."""
    measures = lambda row: (row["right"], -row["passes"])
    for block in BLOCKS:
        for way in WAYS:
            mine = [row for row in rows if (row["block"], row["way"]) == (block, way)]
            one = [row["right"] for row in mine if row["rule"] == ONE_BY_ONE]
            good = [row for row in mine if not one or row["right"] >= one[0] - WORSE]
            for row in mine:
                row["front"] = row in good and not any(
                    measures(other) != measures(row)
                    and all(a >= b for a, b in zip(measures(other), measures(row)))
                    for other in good)


def failures(broken, mine):
    """Rows for rules that have no others."""
    return [dict(rule=text, yours=text in mine, error=in_line(error))
            for text, error in broken.items()]


def measure(args, device, mine, chosen, broken, files):
    """The rules `chosen`, text -> rule, on held-out scenes -> rows, the AR baseline's last; which
    were kept from an earlier run, and whether that was on this machine; the fewest passes, in
    words. Rules that fail go into `broken`, text -> error; if none is left, the first is raised.
    `files`: those of them that are measured in a process of their own; the CSV is written after
    each."""
    wanted = setting(args, device)
    kept = kept_rows(wanted)
    here = kept.get("where") == where(device)
    if args.write and not here:  # nothing of another machine goes under this one's name
        kept = kept_rows(None)
    elif not here and kept["rows"]:
        kept["ar"] = untimed(kept["ar"])
        kept["rows"] = {rule: [*map(untimed, found)] for rule, found in kept["rows"].items()}
    measuring, base, rows = Measuring(args, device), kept["base"], []
    toy_set, objects = measuring.weights.board, measuring.scenes.objects
    order = sorted(chosen, key=lambda text: text != BASE)  # what the others are compared with
    if BASE not in chosen and not base:
        order.insert(0, BASE)
    stems, new = [rule.__name__ for rule in chosen.values() if rule], {}
    for text in tqdm(order, desc="rules", disable=None):
        if text in kept["rows"] and text not in mine:
            rows += kept["rows"][text]
            continue
        start, name = time.perf_counter(), text
        try:
            if text in files:
                found = apart(measure_apart, text, args, device, seconds=args.timeout, file=text)
            else:
                rule = chosen.get(text) or resolve(text)
                if stems.count(rule.__name__) < 2:  # else mine.py of two folders
                    name = rule.__name__
                found = measuring.rule(rule)
        except (RuleError, ValueError) as error:  # one bad file of many does not stop the board
            broken[text] = error
        else:
            if text == BASE:
                base = {" ".join(key): dict(right=outcome.right, passes=outcome.passes)
                        for key, outcome in found.items()}
            if not base:
                raise broken[BASE]
            new[text] = rows_of(name, text in mine, found, base)
            rows += new[text] if text in chosen else []
        if text in files:
            tqdm.write(f"{files.index(text) + 1}/{len(files)} {in_cell(text)}: "
                       f"{in_cell(broken.get(text, 'measured'))} "
                       f"({time.perf_counter() - start:.0f} s)", sys.stderr)
            write_csv(args.csv, rows + failures(broken, mine))
    if not rows:
        raise next(iter(broken.values()))  # a look that fails under every rule, say
    ar = kept.get("ar") or measuring.ar()
    if args.write and wanted and not mine and not args.only:
        every = {text: found for text, found in {**kept["rows"], **new}.items() if text in RULES}
        state = dict(setting=wanted, where=where(device), base=base, rows=every, ar=ar,
                     stamps={text: stamp(text) for text in every})
        write(KEPT, lambda file: file.write((json.dumps(state) + "\n").encode()))
    mark_front(rows)
    rows.sort(key=lambda row: (BLOCKS.index(row["block"]), row["passes"]))
    baseline = dict(rule="AR phase, greedy, KV cache", yours=False, front=False, block="trained",
                    way="greedy")
    fewest = "" if toy_set.order == "free" else (
        f" ({statistics.fmean(fewest_passes(toy_set, n) for n in objects):.2f} passes "
        "always suffice, and fewer do not)")
    old = [text for text in chosen if text not in new and text not in broken]
    return [*rows, baseline | ar], old, here, fewest


# ---------------------------------------------------------------- what is printed and drawn

HEAD = ("rule", "", "fully right", "95% interval", "at temperature 1", "passes",
        "at temperature 1", f"against {BASE}: won, lost", "passes more", "mistakes")
TIMES = ("tokens computed", "ms per caption, batch 1", "batch 64")


def in_line(value):
    """Any text as part of a line."""
    return " ".join(str(value).split())


def in_cell(value):
    """`in_line`, in a table's cell, too."""
    return in_line(value).replace("|", "\\|")


def cells(row, sampled, times):
    """A rule in one block, `row` greedy, `sampled` at temperature 1, as a line of its table."""
    def of(wanted, row):
        """`wanted` filled from the row; nothing where it does not have that."""
        try:
            return wanted.format(**row)
        except KeyError:
            return ""
    wrong = ", ".join(f"{kind} {share:.0%}" for kind, share in row["mistakes"].items()
                      if share >= 0.005)
    line = [f"`{in_cell(row['rule'])}`", "●" * row["front"] + "★" * row["yours"],
            f"{row['right']:.1%}", "{right_low:.1%} to {right_high:.1%}".format(**row),
            of("{right:.1%}", sampled),
            f"{row['passes']:.2f}", of("{passes:.2f}", sampled), of("{won}, {lost}", row),
            of("{more_passes:+.2f} ({more_passes_low:+.2f} to {more_passes_high:+.2f})", row),
            wrong]
    return line + [of(wanted, row) for wanted in (
        "{tokens_computed:.0f}", "{ms_batch_1:.1f}", "{ms_batch_64:.2f}")] * times


def tables(rows, broken, mine, fewest):
    """The board in Markdown: a table for each block. `fewest`: passes that always suffice."""
    parts = []
    for block, about in zip(BLOCKS, (
            f"On the exact posterior, the perfect model{fewest}", "On the trained weights",
            "On weaker weights")):
        here, times = [row for row in rows if row["block"] == block], block == "trained"
        sampled = {row["rule"]: row for row in here if row["way"] == "sampled"}
        lines = [cells(row, sampled.get(row["rule"], {}), times) for row in here
                 if row["way"] == "greedy"]
        head = HEAD + TIMES * times
        lines += [[f"`{in_cell(text)}`", "★" * (text in mine), in_cell(error),
                   *[""] * (len(head) - 3)] for text, error in broken.items()]
        parts.append(f"{about}:\n\n{table(head, lines)}")
    return "\n\n".join(parts)


def summary(files, rows, broken):
    """In Markdown a line for each file of a folder, and `BASE`'s if it is shown: those right most
    often first (the mean of all blocks, greedy and sampled), of these the fastest; then those that
    failed."""
    found = {}
    for row in rows:
        if row["rule"] in (BASE, *files):
            found.setdefault(row["rule"], {})[row["block"], row["way"]] = row
    worth = lambda item: (sum(row["right"] for row in item[1].values()),
                          -sum(row["passes"] for row in item[1].values()))
    lines = []
    for text, of in sorted(found.items(), key=worth, reverse=True):
        greedy = [of[block, "greedy"] for block in BLOCKS]
        lines.append([
            f"`{in_cell(text)}`",
            *(" / ".join(f"{of[block, way]['right']:.1%}" for way in WAYS) for block in BLOCKS),
            " / ".join(f"{row['passes']:.2f}" for row in greedy),
            " / ".join(f"{row['won']}, {row['lost']}" for row in greedy)])
    lines += [[f"`{in_cell(text)}`", in_cell(broken[text]), *[""] * 4]
              for text in files if text in broken]
    each = " / ".join(BLOCKS)
    return table(["file", f"{BLOCKS[0]}: right, {' / '.join(WAYS)}", *BLOCKS[1:],
                  f"passes, greedy: {each}", f"won, lost against `{BASE}`: {each}"], lines)


def labels(rows):
    """rule -> its label in the picture: where marks lie almost on each other, one of them speaks
    for all."""
    texts, left = {}, sorted(rows, key=lambda row: (not row["yours"], not row["front"]))
    while left:
        first = left[0]
        same = [row for row in left if abs(row["passes"] - first["passes"]) < 0.8
                and abs(row["right"] - first["right"]) < 0.025]
        left = [row for row in left if row not in same]
        more = f" and {len(same) - 1} more" * (len(same) > 1)
        texts |= {row["rule"]: "" for row in same} | {first["rule"]: first["rule"] + more}
    return texts


def draw(path, rows, block):
    """The rules of a block, greedy, as marks: passes and share right."""
    rows = [row for row in rows if row["block"] == block and row["way"] == "greedy"]
    names = labels(rows)

    def point(row):
        low, high = row["right_low"], row["right_high"]
        return row["passes"], 100 * row["right"], 100 * low, 100 * high, names[row["rule"]]
    groups = {"on the front": [r for r in rows if r["front"] and not r["yours"]],
              "others": [r for r in rows if not r["front"] and not r["yours"]],
              "yours": [r for r in rows if r["yours"]]}
    series = [drawing.Series(name, [point(row) for row in members], name == "on the front",
                             name != "others") for name, members in groups.items() if members]
    drawing.chart(path, series, "passes per caption", "fully right, %",
                  f"Decoding rules, {block} weights, greedy")


def in_csv(rows):
    """Rows of different keys as one CSV; a dict as JSON."""
    lines = io.StringIO()
    keys = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(lines, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: json.dumps(value) if isinstance(value, dict) else value
                      for key, value in row.items()} for row in rows)
    return lines.getvalue()


def write_csv(path, rows):
    """If there is a path. Bytes of a file's name that are no text become "?"."""
    if path:
        write(path, lambda file: file.write(in_csv(rows).encode(errors="replace")))


def board(args, device, command):
    """Prints the board, draws it, and returns its rows, dicts, one for each rule, block and way."""
    start, mine, files, chosen, broken = time.perf_counter(), [], [], {}, {}
    for text in dict.fromkeys(args.rule or []):
        found = files_of(text)
        files += [file for file in found if file not in files]
        mine += found or [text]
    for text in [*mine, *(args.only or RULES)]:  # yours first: its mistakes cost no wait
        try:
            chosen[text] = None if text in files else resolve(text)
        except ValueError as error:
            broken[text] = error
    if broken and len(broken) == len(set(mine)) + len(args.only or []):
        raise next(iter(broken.values()))
    rows, old, here, fewest = measure(args, device, mine, chosen, broken, files)
    seconds, every = time.perf_counter() - start, rows + failures(broken, mine)
    write_csv(args.csv, every)
    said = (f"{args.scenes} held-out scenes, look {args.look}; {seconds:.0f} s. Fully right: "
            f"greedy, with Wilson's 95% interval over scenes. ● on the front: at most "
            f"{100 * WORSE:.0f} points below one token at a time (`{ONE_BY_ONE}`), and no such "
            "rule is as right in as few passes, and better in one of the two. ★ yours. A pass runs "
            "the model once, a rule's own looks counted. Won, lost: scenes that only this rule, or "
            f"only `{BASE}`, has right. Mistakes: greedy, from 0.5% on.")
    if old:
        said += (f" {len(old)} rules as {KEPT.relative_to(ROOT)} keeps them, "
                 f"{'of earlier runs' if here else 'without their times, of another machine'}.")
    text = f"{said}\n\n{tables(rows, broken, mine, fewest)}"
    print(f"{where(device)}; {text}")
    if files:
        print(f"\nThe files, those right most often first:\n\n{summary(files, rows, broken)}")
    weak = args.picture.with_name(f"{args.picture.stem}_weak{args.picture.suffix}")
    draw(args.picture, rows[:-1], "trained")
    draw(weak, rows[:-1], "weak")
    print(f"\nas pictures: {args.picture}, {weak}")
    if args.write:
        for path, name in ((args.picture, "rules.png"), (weak, "rules_weak.png")):
            shutil.copy(path, FIGURES / name)
        write_part("rules", f"{measured(command, device)}\n\n{text}")
    return every
