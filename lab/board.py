"""`python -m lab rules`: the board of decoding rules, each on the perfect model of the toy set, on
trained weights, and on weaker ones, greedy and sampled."""
import itertools
import json
import shutil
import statistics
import sys
import textwrap
import time
from typing import NamedTuple

import torch
from tqdm import tqdm

from data import toy
from data.exact import fewest_passes
from data.worlds import by_chance, by_rule, measure
from lab import drawing
from lab.checkpoint import ROOT, SHIPPED, SHIPPED_AR, SHIPPED_WEAK, load, write
from lab.evaluate import (THRESHOLD, Scenes, decoded, exact_way, graded, now, one_scene,
                          shares)
from lab.grading import apart, files_of
from lab.intervals import mean_interval, wilson
from lab.results import FIGURES, in_csv, measured, table_of, where, write_part
from lab.shell import commit, reporting
from lab.trace import NOTHING_NAMED, counting
from mini_dimple import decode_ar
from rules import RuleError, resolve, resolve_look

BASE, ONE_BY_ONE = f"confident:{THRESHOLD}", "maskgit:1"
COUNTS = [f"{name}:{k}" for name in ("random_order", "maskgit", "margin", "entropy",
                                     "left_to_right") for k in (1, 2, 4)]
RULES = (*(f"confident:{t}" for t in (0.3, 0.5, 0.7, 0.9, 0.95)), *COUNTS,
         *(f"eb_sampler:{bound}" for bound in (0.1, 0.5, 0.8)), "peak", "middle_out", "halving",
         "fast_dllm:1", "klass", "blocks:16", "wino", "remdm", "remask:0.3", "remask:0.5",
         "dimple_public", "dimple_public:random=1", "dimple_public:flat=1")
BLOCKS = ("exact", "trained", "weak")
WAYS = {"greedy": 0.0, "sampled": 1.0}  # temperature
WORSE = 0.02  # than one token at a time: too much for the front
NEAR = 0.02   # to a true sampler's distance: what is nearer counts as equal
AR = "AR phase, KV cache"
KEPT = ROOT / "weights" / "board.json"
N_SCENES = 300
TIMEOUT_S = 600  # for a file of a folder


class Weights(NamedTuple):
    """What a table decodes with, all of one toy set."""
    board: toy.Toy
    tokenizer: object
    models: dict  # some of NEEDED


NEEDED = {  # name -> the option that names its file, the phase that it ends with
    "trained": ("checkpoint", "diffusion"), "weak": ("weak_checkpoint", "diffusion"),
    "ar": ("ar_checkpoint", "ar")}


def load_weights(args, device, *names):
    """The models of these names -> Weights. Raises ValueError unless they are a toy model's, with
    one tokenizer, in the phases that are needed."""
    models, first = {}, None
    for name in names:
        option, phase = NEEDED[name]
        path = getattr(args, option)
        model, tokenizer, origin = load(path, device)
        found = toy.of(origin), tokenizer.merges, model.config
        if found[0] is None or origin["phase"] != phase:
            raise ValueError(f"--{option.replace('_', '-')} {path}: needed are weights that ended "
                             f"with the phase {phase!r} on a toy set, whose captions can be graded")
        first = first or found
        if found != first:
            raise ValueError(f"--{option.replace('_', '-')} {path}: not of one run, or of one toy "
                             f"set, with --checkpoint {args.checkpoint}: name all of them")
        models[name] = model
    return Weights(found[0], tokenizer, models)


# ---------------------------------------------------------------- one rule

def grade_rule(way, scenes):
    """Decode all scenes in batches by `way(rows)` -> Captions, and a row's figures."""
    found = graded(way, scenes)
    n, hits = len(found.texts), sum(found.right)
    low, high = wilson(hits, n)
    return found, dict(
        right=hits / n, right_low=low, right_high=high, passes=statistics.fmean(found.passes),
        iterations=statistics.fmean(found.iterations), mistakes=shares(found.wrong),
        ms_batch_64=1000 * found.seconds / n)


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


def against(row, base):
    """A rule beside `BASE` in the same block, scene by scene."""
    pairs = list(zip(row["right"], base["right"]))
    more, low, high = mean_interval([[a - b for a, b in zip(row["passes"], base["passes"])]])
    return dict(won=sum(a > b for a, b in pairs), lost=sum(a < b for a, b in pairs),
                more_passes=more, more_passes_low=low, more_passes_high=high)


class Measuring:
    """The scenes and ways of decoding them that all rules share. Raises ValueError for weights or a
    look that do not do."""

    def __init__(self, args, device):
        self.weights = load_weights(args, device, *NEEDED)
        self.look = resolve_look(args.look)
        board, tokenizer, models = self.weights
        self.scenes = Scenes(models["trained"].config, tokenizer, args.scenes, device, board,
                             args.length)
        self.samples = args.samples
        self.one, self.truth = one_scene(self.scenes.config, tokenizer, board, device)

    def way(self, block, rule, temperature):
        if block == "exact":
            return exact_way(self.scenes, rule, temperature)
        model = self.weights.models[block]
        return lambda rows: decoded(model, self.scenes[rows], rule, self.look,
                                    temperature=temperature)

    def rule(self, rule, say=lambda words: None, distance=True):
        """-> its figures (dict) by (block, way), and its `right` and `passes` scene by scene.
        `say(words)` tells how far it is, iteration by iteration. Its `distance`, if asked for, is
        most of the time."""
        figures, scenes, names = {}, {}, False

        def told(step):
            nonlocal names
            say(f"on {block}, {name}: iteration {step.iteration + 1} of at most {step.limit}")
            answer = rule(step)
            names = names or answer.dtype != torch.bool or bool((answer & step.masked).any())
            return answer
        for block in BLOCKS:
            for name, temperature in WAYS.items():
                way = self.way(block, told, temperature)
                found, figures[block, name] = grade_rule(way, self.scenes)
                scenes[f"{block} {name}"] = dict(right=found.right, passes=found.passes)
                if distance and name == "sampled" and block != "weak":
                    figures[block, name]["distance"] = self.distance(block, told)
                if (block, name) == ("trained", "greedy"):
                    figures[block, name] |= alone(way, self.scenes, self.weights.models[block])
        for one in figures.values():
            one["names_positions"] = names
        return figures, scenes

    def distance(self, block, rule):
        """How far what a rule samples of one scene is from the odds of its captions."""
        way = by_rule(self.truth, rule)
        if block != "exact":
            way = lambda B: decoded(self.weights.models[block], self.one[[0] * B], rule, self.look,
                                    temperature=1.0)
        return measure(self.truth, way, self.samples)["distance"]

    def ar(self):
        """The baseline's rows, greedy and sampled."""
        model, config, rows = self.weights.models["ar"], self.scenes.config, []
        decode = lambda batch, temperature: decode_ar(model, *batch[:2], config.window, temperature)
        for name, temperature in WAYS.items():
            way = lambda rows: decode(self.scenes[rows], temperature)
            rows.append(dict(rule=AR, yours=False, block="trained", way=name, front=False,
                             **grade_rule(way, self.scenes)[1]))
        rows[0] |= alone(lambda rows: decode(self.scenes[rows], 0.0), self.scenes, model)
        rows[1]["distance"] = measure(self.truth, lambda B: decode(self.one[[0] * B], 1.0),
                                      self.samples)["distance"]
        return rows


def measure_apart(say, text, args, device):
    """`Measuring.rule` of a file, in the process that `apart` starts."""
    measuring = Measuring(args, device)  # first: the file may change anything
    return measuring.rule(resolve(text), say)


# ---------------------------------------------------------------- rows, and those that are kept

def read_kept(args):
    """What `KEPT` has, if these options ask for the same: rows by rule, the scenes of `BASE`, the
    row of AR, and their date, commit and machine."""
    usual = ((args.checkpoint, args.weak_checkpoint, args.ar_checkpoint, args.look, args.length)
             == (SHIPPED, SHIPPED_WEAK, SHIPPED_AR, "prefilled", None))
    if usual and not args.write:  # which measures everything
        kept = json.loads(KEPT.read_text("utf-8"))
        if kept["n_scenes"] == args.scenes:
            return kept
    return dict(rows={}, base=None, ar=None)


def mark_front(rows, one, chance):
    """Mark what no other row of its block and way beats, among rules that are sometimes right, and
    at most WORSE below one token at a time (`one`: its share right by block and way): none of these
    is at least as good in all of `measures`, and better in one. Sampled captions may be right and
    yet far from their odds, so what is sampled has its distance, too, or no mark. `chance`: a true
    sampler's."""
    measures = lambda row: (row["right"], -row["passes"], -max(
        row["distance"], chance + NEAR) if row["way"] == "sampled" else 0)
    for key in itertools.product(BLOCKS, WAYS):
        mine = [row for row in rows if (row["block"], row["way"]) == key]
        good = [row for row in mine if row["right"] and row["right"] >= one[key] - WORSE
                and ("distance" in row or row["way"] == "greedy")]
        for row in mine:
            row["front"] = row in good and not any(
                measures(other) != measures(row)
                and all(a >= b for a, b in zip(measures(other), measures(row)))
                for other in good)


def measure_all(measuring, rules, yours, files, kept, args, device):
    """`rules`: text -> rule, None for one of the `files`, which are measured in a process of their
    own -> text -> rows of each rule; text -> error of those that failed; the scenes of `BASE`."""
    rows, errors, base = {}, {}, kept["base"]
    first = [] if base else [BASE, ONE_BY_ONE]  # what the others are compared with
    for text in tqdm(dict.fromkeys([*first, *rules]), desc="rules", disable=None):
        if text in kept["rows"] and text not in yours:
            rows[text] = kept["rows"][text]
            continue
        start = time.perf_counter()
        try:
            if text in files:
                figures, scenes = apart(measure_apart, text, args, device, seconds=args.timeout,
                                        file=text)
            else:
                figures, scenes = measuring.rule(rules.get(text) or resolve(text),
                                                 distance=text in rules)
        except RuleError as error:
            errors[text] = " ".join(str(error).split())
        else:
            base = scenes if text == BASE else base
            rows[text] = [dict(rule=text, yours=text in yours, block=block, way=way, **one)
                          for (block, way), one in figures.items()]
            for row in rows[text] if base else []:
                key = f"{row['block']} {row['way']}"
                row |= against(scenes[key], base[key])
        if text in files:
            tqdm.write(f"{files.index(text) + 1}/{len(files)} {text}: "
                       f"{errors.get(text, 'measured')} ({time.perf_counter() - start:.0f} s)",
                       sys.stderr)
            write_csv(args.csv, rows, errors)
    return rows, errors, base


# ---------------------------------------------------------------- what is printed and drawn

def on_screen(rows, errors, yours):
    """The board in at most 120 columns, a line for each rule: yours first, those right most often
    first, of these the fastest; then the others by passes on the trained weights."""
    def worth(text):
        of = rows[text]
        return -sum(row["right"] for row in of), sum(row["passes"] for row in of)

    def line(text):
        by = {(row["block"], row["way"]): row for row in rows[text]}
        words = [f"{text if len(text) <= 28 else '…' + text[-27:]:28s}"]
        for block in BLOCKS:
            greedy, sampled = by.get((block, "greedy"), {}), by.get((block, "sampled"), {})
            cells = (("●" if (sampled if block == "exact" else greedy).get("front") else "", "1"),
                     (greedy.get("right"), "5.1f", 100), (sampled.get("right"), "5.1f", 100),
                     *[(sampled.get("distance"), "5.3f")] * (block != "weak"),
                     (greedy.get("passes"), "5.2f"))
            words.append(" ".join(
                " " * int(form[0]) if value is None else format(value * (times or [1])[0], form)
                for value, form, *times in cells))
        row = by["trained", "greedy"]
        won = f"{row['won']}, {row['lost']}" if "won" in row else ""
        return f"{'  '.join(words)} {won:>8s}  {row['tokens_computed']:6.0f}".rstrip()
    mine = sorted((text for text in yours if text in rows), key=worth)
    others = sorted((text for text in rows if text not in yours),
                    key=lambda text: next(row["passes"] for row in rows[text]
                                          if (row["block"], row["way"]) == ("trained", "greedy")))
    columns = [f"  {'right':>5s} {'T = 1':>5s} {'dist.':>5s} {'passes':>6s}"] * 2 + [
        f"  {'right':>5s} {'T = 1':>5s} {'passes':>6s}"]
    head = [" " * 31 + "".join(f"{name:28s}" for name in BLOCKS),
            f"{'rule':28s}" + " ".join(columns) + "  won, lost tokens"]
    return "\n".join([
        *head, *map(line, mine), *(f"{text}: {errors[text]}" for text in errors),
        *([""] if mine or errors else []), *map(line, others)])


WORDS = ("Right: % of captions, greedy and sampled at T = 1. Dist.: total variation between "
         "captions of one scene, sampled at T = 1, and their true odds; {samples:,} captions of a "
         "true sampler show {chance:.3f}. ● on the front: at most "
         f"{100 * WORSE:.0f} points below one token at a time ({ONE_BY_ONE}), and no such rule is "
         "as right in as few passes, and better in one of the two; on the exact posterior, where a "
         "greedy choice is a tie, sampled, and as near to the odds. A pass runs the model once, a "
         f"rule's own looks counted. Won, lost: scenes that only this rule, or only {BASE}, has "
         "right, trained. Tokens: positions that the model computes for a caption, trained.")


def in_markdown(rows, fewest):
    """The board for docs/results.md: a table for each block. `fewest`: passes that always
    suffice."""
    parts = []
    for block, about in zip(BLOCKS, (f"the exact posterior, the perfect model{fewest}",
                                     "the trained weights", "weaker weights")):
        lines, sampled_of = [], {row["rule"]: row for row in rows
                                 if (row["block"], row["way"]) == (block, "sampled")}
        order = lambda row: (row["passes"] if block != "exact" else (
            -round(sampled_of[row["rule"]]["right"], 2),
            sampled_of[row["rule"]].get("distance", 1)))
        for row in sorted((row for row in rows if (row["block"], row["way"]) == (block, "greedy")),
                          key=order):
            sampled = sampled_of[row["rule"]]
            of = lambda wanted, name, found=row: wanted.format(**found) if name in found else ""
            lines.append({
                "rule": f"`{row['rule']}`",
                "": "●" * (sampled if block == "exact" else row)["front"],
                "fully right": f"{row['right']:.1%}",
                "95% interval": "{right_low:.1%} to {right_high:.1%}".format(**row),
                "T = 1": of("{right:.1%}", "right", sampled),
                "distance": of("{distance:.3f}", "distance", sampled),
                "passes": f"{row['passes']:.2f}",
                "passes, T = 1": of("{passes:.2f}", "passes", sampled),
                f"against {BASE}: won, lost": of("{won}, {lost}", "won"),
                "passes more": of("{more_passes:+.2f} ({more_passes_low:+.2f} to "
                                  "{more_passes_high:+.2f})", "won"),
                "mistakes": ", ".join(f"{kind} {share:.0%}" for kind, share in
                                      row["mistakes"].items() if share >= 0.005)})
            if block == "trained":
                lines[-1] |= {"tokens computed": f"{row['tokens_computed']:.0f}",
                              "ms per caption, batch 1": of("{ms_batch_1:.1f}", "ms_batch_1"),
                              "batch 64": of("{ms_batch_64:.2f}", "ms_batch_64")}
        parts.append(f"On {about}:\n\n{table_of(lines)}")
    return "\n\n".join(parts)


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
    groups = {"on the front": [r for r in rows if r["front"] and not r["yours"]],
              "others": [r for r in rows if not r["front"] and not r["yours"]],
              "yours": [r for r in rows if r["yours"]]}
    series = [drawing.Series(name, [(
        row["passes"], *(100 * row[key] for key in ("right", "right_low", "right_high")),
        names[row["rule"]]) for row in members], name == "on the front", name != "others")
        for name, members in groups.items() if members]
    drawing.chart(path, series, "passes per caption", "fully right, %",
                  f"Decoding rules, {block} weights, greedy")


def write_csv(path, rows, errors, ar=()):
    """If there is a path. Bytes of a file's name that are no text become "?"."""
    every = [*(row for of in rows.values() for row in of), *ar,
             *(dict(rule=text, error=error) for text, error in errors.items())]
    if path:
        write(path, lambda file: file.write(in_csv(every).encode(errors="replace")))
    return every


def board(args, device, command):
    """Prints the board, draws it, and returns its rows, dicts, one for each rule, block and way."""
    with reporting(ValueError, OSError):
        files = [file for text in args.rule or [] for file in files_of(text)]
        yours = [one for text in args.rule or [] for one in files_of(text) or [text]]
        rules = {text: None if text in files else resolve(text)
                 for text in dict.fromkeys([*yours, *(args.only or RULES)])}
        measuring, kept = Measuring(args, device), read_kept(args)
    rows, errors, base = measure_all(measuring, rules, yours, files, kept, args, device)
    ar = kept["ar"] or measuring.ar()
    shown = {text: of for text, of in rows.items() if text in rules}
    flat = [row for of in shown.values() for row in of]
    chance = by_chance(measuring.truth, args.samples)
    mark_front(flat, {(row["block"], row["way"]): row["right"]
                      for row in rows.get(ONE_BY_ONE) or kept["rows"][ONE_BY_ONE]}, chance)
    every = write_csv(args.csv, shown, errors, ar)
    print(f"{where(device)}; {args.scenes} held-out scenes, look {args.look}\n")
    words = WORDS.format(samples=args.samples, chance=chance)
    print(on_screen(shown | {AR: ar}, errors, yours), textwrap.fill(words, 120), sep="\n\n")
    for text in yours:
        if text in shown and not shown[text][0]["names_positions"]:
            print(f"hint: {text}: {NOTHING_NAMED}")
    if old := [text for text in shown if text in kept["rows"] and text not in yours]:
        print(f"\n{len(old)} rules and AR as weights/board.json keeps them: {kept['date']}, commit "
              f"{kept['commit']}, {kept['where']}. --rule NAME measures one anew.")
    weak = args.picture.with_name(f"{args.picture.stem}_weak{args.picture.suffix}")
    draw(args.picture, flat, "trained")
    draw(weak, flat, "weak")
    if args.write:
        line = measured(command, device)  # first: what is written changes the state of the clone
        if not args.only and not yours:
            state = dict(date=time.strftime("%Y-%m-%d"), commit=commit(), where=where(device),
                         n_scenes=args.scenes, base=base, rows=rows, ar=ar)
            write(KEPT, lambda file: file.write((json.dumps(state) + "\n").encode()))
        for path, name in ((args.picture, "rules.png"), (weak, "rules_weak.png")):
            if path.exists():  # without matplotlib there are none
                shutil.copy(path, FIGURES / name)
        toy_set, fewest = measuring.weights.board, ""
        if toy_set.order == "reading":
            counts = [fewest_passes(toy_set, n) for n in measuring.scenes.objects]
            fewest = f" ({statistics.fmean(counts):.2f} passes always suffice, and fewer do not)"
        write_part("rules", f"{line}\n\n{words}\n\n"
                            f"{in_markdown([*flat, *ar], fewest)}")
    return every
