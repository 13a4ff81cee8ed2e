"""`python -m lab claims`: the paper's claims, for each a plan (label -> Recipe), a measurement, and
what it is about."""
import csv
import io
import random
import shutil
import statistics
from typing import NamedTuple

import torch
from tqdm import tqdm

from data import toy
from lab import drawing
from lab.checkpoint import write
from lab.evaluate import BATCH, THRESHOLD, decoded, graded
from lab.intervals import gap_interval, in_percent, in_points, mean_interval, share_interval
from lab.models import Lab, Recipe, digest
from lab.results import FIGURES, measured, table, where, write_part
from lab.speed import timed
from lab.variants import unseen
from mini_dimple import decode_ar, full, prefilled
from rules import resolve

FAILED = 0.9  # a run that ends below this share fully right counts as failed


class Finding(NamedTuple):
    """What a claim's measurement gives."""
    text: str        # Markdown
    rows: list       # dicts, for the CSV
    charts: dict = {}  # name of the PNG -> (list of Series, x label, y label, title)


def columns(grades):
    """[(right, well formed, iterations) of each seed] -> three lists over seeds."""
    return [list(column) for column in zip(*grades)]


def figures(label, grades):
    """The row of a CSV that every claim shares."""
    right, formed, iterations = columns(grades)
    share, low, high = share_interval(right)
    return dict(label=label, right=share, right_low=low, right_high=high,
                well_formed=mean_interval(formed)[0], iterations=mean_interval(iterations)[0],
                each_seed=" ".join(f"{statistics.fmean(r):.4f}" for r in right))


def right_and_iterations(grades):
    """Two cells of a table, with their intervals."""
    right, _, iterations = columns(grades)
    many = "{:.2f} ({:.2f} to {:.2f})".format(*mean_interval(iterations))
    return in_percent(share_interval(right)), many


def percentages(row):
    """A point's height and error bar."""
    return [100 * row[key] for key in ("right", "right_low", "right_high")]


def failed(right):
    return f"{sum(statistics.fmean(one) < FAILED for one in right)} of {len(right)}"


# ---------------------------------------------------------------- recipe

def budgets(lab):
    """The default recipe, and at half its steps."""
    ar, diffusion = lab.default[:2]
    return lab.default, Recipe(ar // 2, diffusion // 2)


def recipe_plan(lab):
    """Both budgets by the default split, as AR alone and as diffusion alone; the smaller one with
    half as much AR, too."""
    plan = {}
    for made in budgets(lab):
        ar, steps = made.ar_steps, made.steps
        for first in (steps, ar, *([ar // 2] if made != lab.default else []), 0):
            plan[f"{steps} steps, {first} of them AR"] = Recipe(first, steps - first)
    return plan


def measure_recipe(lab, plan):
    rows, cells, right, curves = [], [], {}, {}
    for label, made in plan.items():
        grades, steps = lab.grades(made), made.steps
        right[made], formed, iterations = columns(grades)
        row = dict(steps=steps, ar_steps=made.ar_steps, **figures(label, grades),
                   failed=failed(right[made]))
        rows.append(row)
        share_ar = 100 * made.ar_steps / steps
        curves.setdefault(steps, []).append((share_ar, *percentages(row), ""))
        kind = "AR, then diffusion" if made.ar_steps else "diffusion alone"
        kind = kind if made.diffusion_steps else "AR alone, greedy"
        cells.append([steps, kind, made.ar_steps, in_percent(share_interval(right[made])),
                      in_percent(share_interval(formed)), failed(right[made]),
                      f"{row['iterations']:.2f}"])
    gaps = []
    for made in budgets(lab):
        for name, other in (("diffusion alone", Recipe(0, made.steps)),
                            ("AR alone", Recipe(made.steps, 0))):
            gap = gap_interval(right[made], right[other])
            gaps.append([made.steps, name, in_points(gap)])
    text = "\n\n".join([
        table(["steps", "recipe", "of them AR", "fully right", "well formed",
               f"runs under {FAILED:.0%}", "iterations"], cells),
        table(["steps", "AR, then diffusion, against", "points fully right"], gaps)])
    series = [drawing.Series(f"{steps} steps", sorted(points), True, True)
              for steps, points in curves.items()]
    return Finding(text, rows, {"recipe": (
        series, "share of the steps that are autoregressive, %", "fully right, %",
        "How to split the budget")})


# ---------------------------------------------------------------- length

JUST = "just enough"  # each response's own length: it also tells how many objects there are


def length_plan(lab):
    kinds = (("diffusion alone", Recipe(0, lab.default.steps)), ("AR, then diffusion", lab.default))
    paddings = {"random padding": "random", "no random padding": "none"}
    return {f"{name}, {words}": made._replace(padding=padding)
            for name, made in kinds for words, padding in paddings.items()}


def measure_length(lab, plan):
    grades, rule = {}, resolve(f"confident:{THRESHOLD}")

    def decoding(model, scenes, window):
        def way(rows):
            tokens = int(scenes.lengths[rows[0]]) if window == JUST else window
            masks = torch.full((len(rows), tokens), model.config.mask_id, device=lab.device)
            return decoded(model, (*scenes[rows][:2], masks), rule)
        return way
    for label, made in plan.items():
        for seed in lab.seeds:
            model, scenes = lab.model(made, seed)
            longest, trained = int(scenes.lengths.max()), model.config.window
            alike = [part for n in scenes.lengths.unique()
                     for part in (scenes.lengths == n).nonzero()[:, 0].split(BATCH)]
            for window in (JUST, longest, (longest + trained) // 2, trained, trained * 4 // 3,
                           trained * 5 // 3, trained * 2):
                found = graded(decoding(model, scenes, window), scenes,
                               alike if window == JUST else None)
                grades.setdefault(label, {}).setdefault(window, []).append(found)
    rows, series = [], []
    for label, by_window in grades.items():
        mine = [dict(window=window, **figures(label, found)) for window, found in by_window.items()]
        rows += mine
        x = lambda row: scenes.response_tokens if row["window"] == JUST else row["window"]
        series.append(drawing.Series(label, [(x(row), *percentages(row), "") for row in mine], True,
                                     plan[label].padding == "random"))
    right = {label: {window: columns(found)[0] for window, found in by_window.items()}
             for label, by_window in grades.items()}
    words, cells = {trained: f"{trained}, the longest trained"}, []
    for window in next(iter(right.values())):
        cells.append([words.get(window, window), *(
            in_percent(share_interval(right[label][window])) for label in plan)])
    for window in (JUST, trained, 2 * trained):
        cells.append([f"{window} against {longest}: points", *(
            in_points(gap_interval(right[label][window], right[label][longest]))
            for label in plan)])
    return Finding(table(["window, tokens", *plan], cells), rows, {"length": (
        series, "window at decoding, tokens", "fully right, %",
        "Does quality depend on the window?")})


# ---------------------------------------------------------------- confident

CONFIDENT = (*(f"confident:{t}" for t in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)),
             *(f"maskgit:{k}" for k in (1, 2, 3, 4, 6, 8, 12)))


def confident_plan(lab):
    return {"default": lab.default}


def by_length(grades, lengths):
    """Iterations of the scenes of each length: (length, mean, low, high)."""
    points = []
    for n in lengths.unique().tolist():
        of_n = (lengths == n).nonzero()[:, 0].tolist()
        found = [[iterations[i] for i in of_n] for _, _, iterations in grades]
        points.append((n, *mean_interval(found)))
    return points


def measure_confident(lab, plan):
    by_rule, by_step, default = {}, {}, f"confident:{THRESHOLD}"
    for seed in lab.seeds:
        model, scenes = lab.model(lab.default, seed)
        for name in CONFIDENT:
            way = lambda rows: decoded(model, scenes[rows], resolve(name))
            by_rule.setdefault(name, []).append(graded(way, scenes))
        for step in lab.kept(lab.default):
            found = lab.grade(lab.default, seed, step)
            by_step.setdefault(step - lab.default.ar_steps, []).append(found)
    one_by_one, rows, cells = columns(by_rule["maskgit:1"])[0], [], []
    curves = {"confident": [], "maskgit": []}
    for name, grades in by_rule.items():
        rows.append(row := figures(name, grades))
        cells.append([f"`{name}`", *right_and_iterations(grades),
                      in_points(gap_interval(columns(grades)[0], one_by_one)),
                      f"{scenes.response_tokens / row['iterations']:.2f}"])
        kind, number = name.split(":")
        curves[kind].append((row["iterations"], *percentages(row), number))
    text = table(["rule", "fully right", "iterations", "against one per iteration: points",
                  "response tokens per iteration"], cells)
    cells, series = [], []
    for steps, grades in by_step.items():
        rows.append(row := dict(diffusion_steps=steps, **figures(default, grades)))
        points = by_length(grades, scenes.lengths)
        rows += [dict(diffusion_steps=steps, label=default, response_tokens=n, iterations=mean,
                      iterations_low=low, iterations_high=high) for n, mean, low, high in points]
        cells.append([steps, *right_and_iterations(grades),
                      f"{scenes.response_tokens / row['iterations']:.2f}",
                      *(f"{mean:.2f}" for _, mean, _, _ in points)])
        last = steps == lab.default.diffusion_steps
        series.append(drawing.Series(f"{steps} diffusion steps", [(*point, "") for point in points],
                                     True, last))
    lengths = [n for n, *_ in points]
    text += f"\n\n`{default}` as training goes on:\n\n" + table(
        ["diffusion steps", "fully right", "iterations", "response tokens per iteration",
         *(f"iterations for {n} tokens" for n in lengths)], cells)
    third = [(n, n / 3, None, None, "") for n in lengths]
    series.append(drawing.Series("response length / 3", third, True, False))
    names = {"confident": "confident, by threshold", "maskgit": "fixed count per iteration"}
    trade = [drawing.Series(names[kind], sorted(points), True, kind == "confident")
             for kind, points in curves.items()]
    return Finding(text, rows, {
        "confident": (trade, "iterations per caption", "fully right, %",
                      "Confident decoding against fixed counts"),
        "confident_length": (series, "response length, tokens", "iterations",
                             f"Iterations of {default} by response length")})


# ---------------------------------------------------------------- prefill

def prefill_plan(lab):
    return {"full attention": lab.default,
            "prefix cannot see the response": lab.default._replace(prefix_mask=True)}


NEVER = "prefix that never saw the window"
PREFILLS = {"none": full, "as published": prefilled, NEVER: unseen}


def measure_prefill(lab, plan):
    rows, cells, none, batch = [], [], None, min(BATCH, lab.n_scenes)
    rule = resolve(f"confident:{THRESHOLD}")
    for label, made in plan.items():
        ways = dict(PREFILLS)
        if made.prefix_mask:  # with it the two are one; timed as the published look
            ways = {"none": full, NEVER: prefilled}
        grades, ms = {name: [] for name in ways}, {name: [] for name in ways}
        for seed in lab.seeds:
            model, scenes = lab.model(made, seed)
            at = {name: lambda rows, look=look: decoded(model, scenes[rows], rule, look)
                  for name, look in ways.items()}
            for name, way in at.items():
                grades[name].append(graded(way, scenes))
            first = {name: lambda turn, way=way: way(slice(0, batch)) for name, way in at.items()}
            for name, seconds in timed(first, lab.device, 5).items():
                ms[name].append(1000 * seconds / batch)
        none = none or columns(grades["none"])[0]  # of the model with full attention
        for name in ways:
            right = columns(grades[name])[0]
            ratios = [a / b for a, b in zip(ms["none"], ms[name])]
            row = dict(trained=label, **figures(name, grades[name]),
                       ms_per_caption=statistics.median(ms[name]),
                       time_ratio=statistics.median(ratios))
            rows.append(row)
            gap = in_points(gap_interval(right, none)) if cells else ""
            cells.append([label, name, in_percent(share_interval(right)), gap,
                          f"{row['iterations']:.2f}", f"{row['ms_per_caption']:.2f}",
                          f"{row['time_ratio']:.2f}"])
    head = ["trained with", "prefilling", "fully right", "against the first row: points",
            "iterations", f"ms per caption, batch {batch}", "times as fast as none"]
    return Finding(table(head, cells), rows)


# ---------------------------------------------------------------- priors

def priors_plan(lab):
    return {"default": lab.default, "AR phase": Recipe(lab.default.ar_steps, 0)}


class Prior(NamedTuple):
    """A window with given tokens, and the scene that its caption is graded against; `shorter` asks
    for an object fewer."""
    window: torch.Tensor  # (W,)
    scene: tuple
    shorter: bool = False


def make_priors(ids, scene, config, tokenizer, board, rng):
    """ids (W,): a right caption -> name -> Prior. The first phrase of a caption is "a SIZE COLOUR
    SHAPE PREPOSITION" from place 3 on."""
    opening, phrase, W = range(3), range(4, 8), len(ids)
    end = (ids == config.eos_id).nonzero()[0, 0].item()

    def window(given, tokens=ids):
        masks = torch.full_like(ids, config.mask_id)
        masks[list(given)] = tokens[list(given)]
        return masks
    lie = rng.choice([colour for colour in toy.COLOURS if colour != scene[0].colour])
    lied, lied_scene = ids.clone(), (scene[0]._replace(colour=lie), *scene[1:])
    lied[5] = tokenizer.encode(" " + lie)[0]
    priors = {
        "nothing": Prior(window([]), scene),
        "length": Prior(window(range(end, W)), scene),
        "wording: opening": Prior(window(opening), scene),
        "wording: opening and first preposition": Prior(window([*opening, 7]), scene),
        "blanks: first object and its preposition":
            Prior(window([i for i in range(W) if i not in phrase]), scene),
        "one fact: the first colour": Prior(window([5]), scene),
        "one fact, wrong": Prior(window([5], lied), lied_scene),
        "one fact, wrong, and all before it": Prior(window(range(6), lied), lied_scene),
    }
    if len(scene) > 1:
        fewer = toy.caption(scene[:-1], board, toy.OPENINGS[0], toy.PREPOSITIONS[0])
        tail = range(len(tokenizer.encode(fewer)), W)
        shorter = window(tail, torch.full_like(ids, config.eos_id))
        priors["length of one object fewer"] = Prior(shorter, scene, True)
    return priors


def follow(tokens, prior, tokenizer, board, config):
    """-> is each given token in its place; if so, is the caption right: the scene's, or of one
    object fewer and all of it true."""
    given = prior.window != config.mask_id
    kept = torch.equal(tokens[given], prior.window[given])
    words = tokens != config.eos_id
    whole = not (words[1:] & ~words[:-1]).any()  # no EOS before a word
    text = tokenizer.decode(tokens[words].tolist())
    right = toy.grade(text, prior.scene, board)[1]
    if prior.shorter:
        stated = toy.parse(text, board) or ()
        right = (len(stated) == len(prior.scene) - 1
                 and list(stated) == [thing for thing in prior.scene if thing in stated])
    return kept, kept and whole and right


def measure_priors(lab, plan):
    rule, results = resolve(f"confident:{THRESHOLD}"), {}
    for seed in lab.seeds:
        (model, scenes), (ar_model, _) = (lab.model(made, seed) for made in plan.values())
        config, tokenizer, board, rng = (
            model.config, scenes.tokenizer, scenes.board, random.Random(0))
        asked = [make_priors(ids, scene, config, tokenizer, board, rng)
                 for ids, scene in zip(scenes.responses, scenes.split.scenes)]
        for name in dict.fromkeys(name for of_one in asked for name in of_one):
            rows = torch.tensor([i for i, of_one in enumerate(asked) if name in of_one])
            mine, answers = [asked[i][name] for i in rows], {"diffusion": [], "ar": []}
            windows = torch.stack([prior.window for prior in mine])
            for part, some in zip(rows.split(BATCH), windows.split(BATCH)):
                images, prompts, some = *scenes[part][:2], some.to(lab.device)
                answers["diffusion"] += decoded(model, (images, prompts, some), rule).tokens.cpu()
                # what precedes the first blank, alike in all windows, is what AR can be told
                told = some[:, :int((some[0] == config.mask_id).long().argmax())]
                told_prompts = torch.cat([prompts, told], 1)
                rest = decode_ar(ar_model, images, told_prompts, config.window - told.shape[1])
                answers["ar"] += torch.cat([told, rest.tokens], 1).cpu()
            for way, tokens in answers.items():
                grades = [follow(t, prior, tokenizer, board, config)
                          for t, prior in zip(tokens, mine)]
                results.setdefault((name, way), []).append(tuple(map(list, zip(*grades))))
    rows, cells = [], []
    for name in dict.fromkeys(name for name, _ in results):
        cells.append([name])
        for way in ("diffusion", "ar"):
            kept, right = (share_interval(list(column)) for column in zip(*results[name, way]))
            rows.append(dict(prior=name, way=way,
                             **dict(zip(("kept", "kept_low", "kept_high"), kept)),
                             **dict(zip(("right", "right_low", "right_high"), right))))
            cells[-1] += [in_percent(kept), in_percent(right)]
    head = ["given", "diffusion: kept (always, by construction)", "kept and right",
            "AR, told what precedes the first blank: kept", "kept and right"]
    return Finding(table(head, cells), rows)


# ---------------------------------------------------------------- loss

def loss_plan(lab):
    return {"flat": lab.default, "example": lab.default._replace(weighting="example"),
            "elbo": lab.default._replace(weighting="elbo"),
            "flat, complementary masks": lab.default._replace(complementary=True)}


def measure_loss(lab, plan):
    rows, cells, flat = [], [], columns(lab.grades(lab.default))[0]
    for label, made in plan.items():
        grades = lab.grades(made)
        right, _, _ = columns(grades)
        share, iterations = right_and_iterations(grades)
        rows.append(figures(label, grades))
        gap = "" if made == lab.default else in_points(gap_interval(right, flat))
        cells.append([label, share, gap, failed(right), iterations])
    head = ["loss", "fully right", "against flat: points", f"runs under {FAILED:.0%}", "iterations"]
    return Finding(table(head, cells), rows)


# ---------------------------------------------------------------- all of them

CLAIMS = {
    "recipe": (recipe_plan, measure_recipe, "autoregressive training first, then diffusion"),
    "length": (length_plan, measure_length, "quality against the window length at decoding"),
    "confident": (confident_plan, measure_confident,
                  "iterations and accuracy of confident decoding"),
    "prefill": (prefill_plan, measure_prefill, "prefilling: accuracy and wall time"),
    "priors": (priors_plan, measure_priors, "structure priors, and what AR can be asked instead"),
    "loss": (loss_plan, measure_loss, "weightings of the diffusion loss, complementary masks"),
}


def in_csv(rows):
    """Rows of different keys as one CSV."""
    lines = io.StringIO()
    keys = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(lines, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return lines.getvalue()


def claims(args, device, command):
    """Train what is missing for the claims in `args.names` and measure them; those that this code
    has measured in the same folder are shown again."""
    names, lab = args.names or list(CLAIMS), Lab(args, device)
    mark = f"<!-- {digest('*.py', 'data/*.py', 'rules/*.py', 'lab/*.py')} -->"
    missing = {name: lab.missing(CLAIMS[name][0](lab)) for name in names}
    models = len(set().union(*missing.values()))
    with tqdm(total=models + len(names), desc="models and claims", disable=None) as bar:
        for name in names:
            plan, measure, about = CLAIMS[name]
            head = (f"**{name}**: {about}. Seeds 0 to {lab.seeds[-1]}, {lab.n_scenes} held-out "
                    f"scenes, {lab.default.ar_steps} AR + {lab.default.diffusion_steps} diffusion "
                    f"steps by default; {where(device)}.")
            said = lab.out / f"{name}.md"
            text = said.read_text("utf-8") if said.exists() else ""
            if not (text.startswith(head) and text.endswith(mark)):
                for made, seed in missing[name]:
                    if not lab.complete(made, seed):  # no claim before it trained it
                        bar.set_postfix_str(f"training {lab.folder(made, seed).name}")
                        lab.train(made, seed)
                        bar.update()
                bar.set_postfix_str(f"measuring {name}")
                finding = measure(lab, plan(lab))
                text = (f"{head}\n\n{measured(command, device)} In brackets: 95% intervals.\n\n"
                        f"{finding.text}\n\n{mark}")
                for picture, (series, *words) in finding.charts.items():
                    drawing.chart(lab.out / f"{picture}.png", series, *words)
                write(lab.out / f"{name}.csv",
                      lambda file: file.write(in_csv(finding.rows).encode()))
                write(said, lambda file: file.write(text.encode()))
            tqdm.write(text.removesuffix(mark))
            if args.write:
                write_part(f"claims {name}", text.removesuffix(mark).removeprefix(head))
                for picture in lab.out.glob(f"{name}*.png"):
                    if (FIGURES / picture.name).exists():  # what results.md shows
                        shutil.copy(picture, FIGURES)
            bar.update()
