"""`python -m lab claims`: the paper's claims, for each a plan (label -> Asked), a measurement, and
what it is about."""
import itertools
import math
import random
import shutil
import statistics
from collections import Counter
from typing import NamedTuple

import torch
from tqdm import tqdm

from data import toy
from lab import drawing
from lab.board import RULES, in_csv
from lab.checkpoint import write
from lab.evaluate import THRESHOLD, batches, caption, decoded, exact_way, graded, mistakes
from lab.intervals import gap_interval, in_percent, in_points, mean_interval, share_interval
from lab.models import Lab, Recipe, digest
from lab.results import FIGURES, measured, table, where, write_part
from lab.variants import unseen
from mini_dimple import decode, decode_ar, full, prefilled
from rules import resolve

FAILED = 0.9  # a run that ends below this share fully right counts as failed
MANY, SOME, FEW = 5, 3, 2  # seeds: where a verdict hangs on it, elsewhere, of a side issue


class Asked(NamedTuple):
    """A model that a claim needs, and with how many seeds."""
    recipe: Recipe
    seeds: int = SOME


class Finding(NamedTuple):
    """What a claim's measurement gives."""
    text: str        # Markdown
    rows: list       # dicts, for the CSV
    charts: dict = {}  # name of the PNG -> (list of Series, x label, y label, title)


def columns(grades):
    """[(right, what is wrong, iterations) of each seed] -> three lists over seeds."""
    return [list(column) for column in zip(*grades)]


def figures(label, grades):
    """The row of a CSV that every claim shares."""
    right, wrong, iterations = columns(grades)
    share, low, high = share_interval(right)
    kinds = Counter(kind for one in wrong for kind in one if kind)
    return dict(label=label, right=share, right_low=low, right_high=high,
                iterations=mean_interval(iterations)[0],
                each_seed=" ".join(f"{statistics.fmean(r):.4f}" for r in right),
                mistakes={kind: n / sum(map(len, wrong)) for kind, n in kinds.most_common()})


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


def in_nats(values):
    """Nats above the floor, one for each seed -> their mean and its range."""
    return f"{statistics.fmean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def nats_gap(a, b):
    """a minus b, paired by seed -> mean and Student's 95% interval."""
    gap = mean_interval([[x - y] for x, y in zip(a, b)])
    return "{:+.4f} ({:+.4f} to {:+.4f})".format(*gap) if min(len(a), len(b)) > 1 else ""


def verdict(gap):
    """A difference's interval in a word."""
    _, low, high = gap
    return "better" if low > 0 else "worse" if high < 0 else "no difference seen"


# ---------------------------------------------------------------- recipe

EXAMPLES = (500, 2000)  # seen many times: 1,200 batches are 171 or 39 epochs


def budgets(lab):
    """The default recipe, and at three quarters and half of its steps."""
    ar, diffusion = lab.default[:2]
    return [Recipe(max(1, ar * part // 4), max(1, diffusion * part // 4)) for part in (4, 3, 2)]


def recipe_pairs(lab):
    """What is compared: steps, examples -> AR first and diffusion alone, and how many seeds."""
    pairs = [(made, None, MANY) for made in budgets(lab)]
    pairs += [(lab.default._replace(examples=n), n, SOME) for n in EXAMPLES]
    for first, examples, seeds in pairs:
        yield first, first._replace(ar_steps=0, diffusion_steps=first.steps), examples, seeds


def recipe_plan(lab):
    plan = {}
    for first, alone, examples, seeds in recipe_pairs(lab):
        for made, name in ((first, "AR first"), (alone, "diffusion alone")):
            plan[f"{made.steps} steps, {examples or 'all'} examples, {name}"] = Asked(made, seeds)
    return plan


def measure_recipe(lab, plan):
    rows, cells, gaps, curves = [], [], [], {}
    for first, alone, examples, seeds in recipe_pairs(lab):
        right, nats = {}, {}
        for made, name in ((first, "AR, then diffusion"), (alone, "diffusion alone")):
            grades = lab.grades(made, seeds)
            right[name], nats[name] = columns(grades)[0], lab.above_floor(made, seeds)
            row = dict(steps=made.steps, ar_steps=made.ar_steps, examples=examples or "",
                       **figures(name, grades), failed=failed(right[name]),
                       nats_above_floor=statistics.fmean(nats[name]))
            rows.append(row)
            cells.append([made.steps, examples or "all", name, made.ar_steps,
                          in_nats(nats[name]), in_percent(share_interval(right[name])),
                          failed(right[name]), f"{row['iterations']:.2f}"])
            if not examples:
                mean = statistics.fmean(nats[name])
                curves.setdefault(name, []).append(
                    (made.steps, mean, min(nats[name]), max(nats[name]), ""))
        gap = gap_interval(*right.values())
        gaps.append([first.steps, examples or "all", nats_gap(*nats.values()), in_points(gap),
                     verdict(gap)])
    text = "\n\n".join([
        table(["steps", "examples", "recipe", "of them AR", "nats above the floor (range)",
               "fully right", f"runs under {FAILED:.0%}", "iterations"], cells),
        "AR first against diffusion alone, of as many steps and the same seeds:",
        table(["steps", "examples", "nats above the floor", "points fully right",
               "share right is"], gaps)])
    series = [drawing.Series(name, sorted(points), True, name != "diffusion alone")
              for name, points in curves.items()]
    return Finding(text, rows, {"recipe": (series, "steps", "nats per token above the floor",
                                           "What the steps buy")})


# ---------------------------------------------------------------- length

JUST = "just enough"  # each response's own length: it also tells how many objects there are


def length_plan(lab):
    kinds = (("diffusion alone", Recipe(0, lab.default.steps)), ("AR, then diffusion", lab.default))
    paddings = {"random padding": (), "no random padding": ("unpadded",)}
    return {f"{name}, {words}": Asked(made._replace(variant=variant))
            for name, made in kinds for words, variant in paddings.items()}


def measure_length(lab, plan):
    grades, early, rule = {}, {}, resolve(f"confident:{THRESHOLD}")

    def decoding(model, scenes, window):
        def way(rows):
            tokens = int(scenes.lengths[rows[0]]) if window == JUST else window
            masks = torch.full((len(rows), tokens), model.config.mask_id, device=lab.device)
            return decoded(model, (*scenes[rows][:2], masks), rule)
        return way
    for label, (made, seeds) in plan.items():
        for seed in lab.seeds(seeds):
            model, scenes = lab.model(made, seed)
            longest, trained = int(scenes.lengths.max()), model.config.window
            alike = [part for n in scenes.lengths.unique()
                     for part in batches((scenes.lengths == n).nonzero()[:, 0], lab.device)]
            for window in (JUST, longest, trained, longest * 3 // 2, longest * 2, longest * 5 // 2,
                           longest * 3):
                found = caption(decoding(model, scenes, window), scenes,
                                alike if window == JUST else None)
                wrong = mistakes(found, scenes.split, scenes.board)
                key = label, window
                grades.setdefault(key, []).append(
                    ([one is None for one in wrong], wrong, found.iterations))
                early.setdefault(key, []).append(
                    [n + 1 < wanted for n, wanted in zip(found.tokens, scenes.lengths.tolist())])
    rows, series, windows = [], [], list(dict.fromkeys(window for _, window in grades))
    for label in plan:
        mine = [dict(window=window, **figures(label, grades[label, window]),
                     ends_too_early=share_interval(early[label, window])[0]) for window in windows]
        rows += mine
        x = lambda row: scenes.response_tokens if row["window"] == JUST else row["window"]
        series.append(drawing.Series(label, [(x(row), *percentages(row), "") for row in mine], True,
                                     not plan[label].recipe.variant))
    right = {key: columns(found)[0] for key, found in grades.items()}
    words, cells = {trained: f"{trained}, the longest trained"}, []
    for window in windows:
        cells.append([words.get(window, window), *(
            f"{in_percent(share_interval(right[label, window]))}; "
            f"{share_interval(early[label, window])[0]:.0%}" for label in plan)])
    for window in (JUST, trained, longest * 2, longest * 3):
        gaps = [gap_interval(right[label, window], right[label, longest]) for label in plan]
        cells.append([f"{window} against {longest}: points",
                      *(f"{in_points(gap)}: {verdict(gap)}" for gap in gaps)])
    text = ("Fully right, and after the semicolon the share that ends too early:\n\n"
            + table(["window, tokens", *plan], cells))
    return Finding(text, rows, {"length": (
        series, "window at decoding, tokens", "fully right, %",
        "Does quality depend on the window?")})


# ---------------------------------------------------------------- confident

THRESHOLDS = (0.5, 0.7, 0.9, 0.95)
COUNTS = (1, 2, 3, 4, 6, 8)


def of_wording(lab, wording):
    return Asked(lab.default, SOME) if wording == "two" else Asked(
        lab.default._replace(wording=wording), 1)


def confident_plan(lab):
    return {f"wording {wording}": of_wording(lab, wording) for wording in toy.WORDINGS}


def by_length(grades, lengths):
    """Iterations of the scenes of each length: (length, mean, low, high)."""
    points = []
    for n in lengths.unique().tolist():
        of_n = (lengths == n).nonzero()[:, 0].tolist()
        found = [[iterations[i] for i in of_n] for _, _, iterations in grades]
        points.append((n, *mean_interval(found)))
    return points


def slope(points):
    """Least squares: iterations per token."""
    x, y = (torch.tensor(values, dtype=torch.double) for values in list(zip(*points))[:2])
    if len(x) < 2:
        return math.nan
    return (((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()).item()


def measure_confident(lab, plan):
    rows, cells, series, trade = [], [], [], {}
    default = f"confident:{THRESHOLD}"
    for wording in toy.WORDINGS:
        made, seeds = of_wording(lab, wording)
        by_rule = {}
        names = [f"confident:{t}" for t in THRESHOLDS]
        names += [f"maskgit:{k}" for k in COUNTS] if wording == "two" else []
        for seed in lab.seeds(seeds):
            model, scenes = lab.model(made, seed)
            for name in names:
                way = lambda rows: decoded(model, scenes[rows], resolve(name))
                by_rule.setdefault(("trained", name), []).append(graded(way, scenes))
        for name in names:  # of the last seed's scenes: all seeds have the same
            by_rule["exact", name] = [graded(exact_way(scenes, resolve(name)), scenes)]
        for (model_name, name), grades in by_rule.items():
            points = by_length(grades, scenes.lengths)
            row = dict(wording=wording, model=model_name, **figures(name, grades),
                       iterations_per_token=slope(points),
                       **{f"iterations_for_{n}": mean for n, mean, *_ in points})
            rows.append(row)
            cells.append([wording, model_name, f"`{name}`", *right_and_iterations(grades),
                          f"{scenes.response_tokens / row['iterations']:.2f}",
                          *(f"{mean:.2f}" for _, mean, *_ in points), f"{slope(points):.2f}"])
            if name == default:
                series.append(drawing.Series(
                    f"{wording}, {model_name}", [(*point, "") for point in points], True,
                    model_name == "trained"))
            if wording == "two" and model_name == "trained":
                kind, number = name.split(":")
                trade.setdefault(kind, []).append((row["iterations"], *percentages(row), number))
    lengths = [n for n, *_ in points]
    text = table(["wordings", "model", "rule", "fully right", "iterations",
                  "response tokens per iteration", *(f"for {n} tokens" for n in lengths),
                  "iterations per token more"], cells)
    names = {"confident": "confident, by threshold", "maskgit": "fixed count per iteration"}
    trade = [drawing.Series(names[kind], sorted(points), True, kind == "confident")
             for kind, points in trade.items()]
    return Finding(text, rows, {
        "confident": (trade, "iterations per caption", "fully right, %",
                      "Confident decoding against fixed counts"),
        "confident_length": (series, "response length, tokens", "iterations",
                             f"Iterations of {default}, by wordings")})


# ---------------------------------------------------------------- prefill

def prefill_plan(lab):
    return {"full attention": Asked(lab.default),
            "prefix cannot see the response": Asked(
                lab.default._replace(variant=("prefix-mask",)), FEW)}


NEVER = "prefix that never saw the window"
PREFILLS = {"none": full, "as published": prefilled, NEVER: unseen}


def measure_prefill(lab, plan):
    """Where it can hurt: the longer the decoding goes on, and the longer the window, the staler the
    prefix's keys and values."""
    rows, cells = [], []
    for label, (made, seeds) in plan.items():
        ways = dict(PREFILLS)
        if "prefix-mask" in made.variant:  # with it the two are one
            ways = {"none": full, NEVER: unseen}
        for rule_name, times in itertools.product((f"confident:{THRESHOLD}", "maskgit:1"), (1, 2)):
            rule, grades = resolve(rule_name), {}
            for seed in lab.seeds(seeds):
                model, scenes = lab.model(made, seed)
                window = model.config.window * times
                masks = torch.full((lab.n_scenes, window), model.config.mask_id,
                                   device=lab.device)
                for name, look in ways.items():
                    way = lambda rows: decoded(
                        model, (*scenes[rows][:2], masks[rows]), rule, look)
                    grades.setdefault(name, []).append(graded(way, scenes))
            none = columns(grades["none"])[0]
            for name in ways:
                right = columns(grades[name])[0]
                rows.append(row := dict(trained=label, rule=rule_name, window=window,
                                        **figures(name, grades[name])))
                gap = gap_interval(right, none)
                cells.append([label, f"`{rule_name}`", window, name,
                              in_percent(share_interval(right)),
                              "" if name == "none" else f"{in_points(gap)}: {verdict(gap)}",
                              f"{row['iterations']:.2f}"])
    head = ["trained with", "rule", "window", "prefilling", "fully right",
            "against none: points", "iterations"]
    return Finding(table(head, cells), rows)


# ---------------------------------------------------------------- priors

def priors_plan(lab):
    return {"default": Asked(lab.default), "AR phase": Asked(lab.default.ar_phase())}


class Prior(NamedTuple):
    """A window with given tokens, and the scene that its caption is graded against; `shorter` asks
    for an object fewer."""
    window: torch.Tensor  # (W,)
    scene: tuple
    shorter: bool = False


def make_priors(ids, scene, config, tokenizer, board, rng):
    """ids (W,): a right caption -> name -> Prior. Phrases have one length, and a joint of one token
    between them; the first word of a phrase settles its wording."""
    W, encode = len(ids), tokenizer.encode
    length = len(encode(" " + board.phrase(scene[0], toy.PREPOSITIONS[0])))
    opening = len(encode(toy.OPENINGS[0].rstrip()))
    starts = [opening + j * (length + 1) for j in range(len(scene))]
    end = (ids == config.eos_id).nonzero()[0, 0].item()

    def window(given, tokens=ids):
        masks = torch.full_like(ids, config.mask_id)
        masks[list(given)] = tokens[list(given)]
        return masks
    last = starts[-1]
    colour, = encode(" " + scene[-1].colour)
    place = last + (ids[last:last + length] == colour).nonzero()[0, 0].item()
    lie = rng.choice([name for name in toy.COLOURS if name != scene[-1].colour])
    lied, lied_scene = ids.clone(), (*scene[:-1], scene[-1]._replace(colour=lie))
    lied[place], = encode(" " + lie)
    priors = {
        "nothing": Prior(window([]), scene),
        "length": Prior(window(range(end, W)), scene),
        "opening": Prior(window(range(opening)), scene),
        "opening and the first object's wording": Prior(window(range(opening + 1)), scene),
        "the last object's wording": Prior(window([last]), scene),
        "every object's wording": Prior(window(starts), scene),
        "the last object's colour": Prior(window([place]), scene),
        "the last object's colour, wrong": Prior(window([place], lied), lied_scene),
        "all but the last object": Prior(
            window([i for i in range(W) if not last <= i < last + length]), scene),
    }
    if len(scene) > 1:
        tail = range(starts[-1] - 1, W)
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
    right = toy.mistake(text, prior.scene, board) is None
    if prior.shorter:
        stated = toy.parse(text, board) or ()
        right = (len(stated) == len(prior.scene) - 1
                 and list(stated) == [thing for thing in prior.scene if thing in stated])
    return kept, kept and whole and right


def measure_priors(lab, plan):
    rule, results = resolve(f"confident:{THRESHOLD}"), {}
    for seed in lab.seeds(SOME):
        (model, scenes), (ar_model, _) = (lab.model(made, seed) for made, _ in plan.values())
        config, tokenizer, board, rng = (
            model.config, scenes.tokenizer, scenes.board, random.Random(0))
        asked = [make_priors(ids, scene, config, tokenizer, board, rng)
                 for ids, scene in zip(scenes.responses, scenes.split.scenes)]
        looks = scenes.exact()
        for name in dict.fromkeys(name for of_one in asked for name in of_one):
            rows = torch.tensor([i for i, of_one in enumerate(asked) if name in of_one])
            mine = [asked[i][name] for i in rows]
            answers = {"diffusion": [], "exact": [], "ar": []}
            windows = torch.stack([prior.window for prior in mine]).to(lab.device)
            for some in batches(torch.arange(len(rows)), lab.device):
                images, prompts, _ = scenes[rows[some]]
                batch = images, prompts, windows[some]
                answers["diffusion"] += decoded(model, batch, rule).tokens.cpu()
                answers["exact"] += decode(looks(rows[some]), windows[some], config,
                                           rule).tokens.cpu()
            # AR can be told what precedes the first blank: those told as much are one batch
            blanks, ar = (windows == config.mask_id).long().argmax(1), {}
            for first in blanks.unique().tolist():
                some = (blanks == first).nonzero()[:, 0].cpu()
                images, prompts, _ = scenes[rows[some]]
                told = windows[some, :first]
                told_prompts = torch.cat([prompts, told], 1)
                rest = decode_ar(ar_model, images, told_prompts, config.window - first)
                ar |= zip(some.tolist(), torch.cat([told, rest.tokens], 1).cpu())
            answers["ar"] = [ar[i] for i in range(len(rows))]
            for way, tokens in answers.items():
                grades = [follow(t, prior, tokenizer, board, config)
                          for t, prior in zip(tokens, mine)]
                results.setdefault((name, way), []).append(tuple(map(list, zip(*grades))))
    rows, cells = [], []
    for name in dict.fromkeys(name for name, _ in results):
        cells.append([name])
        for way in ("diffusion", "exact", "ar"):
            kept, right = (share_interval(list(column)) for column in zip(*results[name, way]))
            rows.append(dict(prior=name, way=way,
                             **dict(zip(("kept", "kept_low", "kept_high"), kept)),
                             **dict(zip(("right", "right_low", "right_high"), right))))
            cells[-1] += [in_percent(kept)] * (way == "ar") + [in_percent(right)]
    head = ["given", "diffusion: right (kept always, by construction)", "exact posterior: right",
            "AR, told what precedes the first blank: kept", "kept and right"]
    return Finding(table(head, cells), rows)


# ---------------------------------------------------------------- loss

DEFAULT = "1/t"  # equation (3)


def loss_plan(lab):
    variant = lambda name: lab.default._replace(variant=(name,))
    return {DEFAULT: Asked(lab.default), "flat": Asked(variant("flat")),
            "example": Asked(variant("example")),
            f"{DEFAULT}, complementary masks": Asked(variant("complementary"), FEW)}


def measure_loss(lab, plan):
    rows, cells = [], []
    default, floor = columns(lab.grades(*plan[DEFAULT]))[0], lab.above_floor(*plan[DEFAULT])
    for label, asked in plan.items():
        grades, nats = lab.grades(*asked), lab.above_floor(*asked)
        right = columns(grades)[0]
        share, iterations = right_and_iterations(grades)
        rows.append(dict(figures(label, grades), nats_above_floor=statistics.fmean(nats)))
        gap = gap_interval(right, default)
        cells.append([label, len(nats), in_nats(nats), share, failed(right), iterations,
                      *(["", ""] if label == DEFAULT else [
                          nats_gap(nats, floor), f"{in_points(gap)}: {verdict(gap)}"])])
    head = ["loss", "seeds", "nats above the floor (range)", "fully right",
            f"runs under {FAILED:.0%}", "iterations",
            f"against {DEFAULT}: nats", "points"]
    return Finding(table(head, cells), rows)


# ---------------------------------------------------------------- ranks

TEN = ("confident:0.9", "confident:0.7", "confident:0.5", "eb_sampler:0.1", "eb_sampler:0.8",
       "maskgit:2", "random_order:4", "left_to_right:2", "klass", "fast_dllm:1")


def ranks_plan(lab):
    return {"default": Asked(lab.default, FEW)}


def sign_test(a, b):
    """Two-sided p of paired values under "as often above as below" (McNemar's, of bools)."""
    up, down = sum(x > y for x, y in zip(a, b)), sum(x < y for x, y in zip(a, b))
    n, k = up + down, min(up, down)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2 ** n)


def tau_b(a, b):
    """Kendall's rank correlation of two lists, ties allowed for."""
    sign = lambda x: (x > 0) - (x < 0)
    pairs = [(sign(a[i] - a[j]), sign(b[i] - b[j]))
             for i, j in itertools.combinations(range(len(a)), 2)]
    ties = sum(x * x for x, _ in pairs) * sum(y * y for _, y in pairs)
    return sum(x * y for x, y in pairs) / math.sqrt(ties) if ties else math.nan


def measure_ranks(lab, plan):
    """Whether the board tells rules apart: of ten named before any was measured, how many pairs
    differ; and whether weaker weights of two seeds put all rules into one order."""
    step = next((s for s in lab.kept(lab.default) if s >= lab.default.ar_steps
                 + lab.default.diffusion_steps // 2), lab.default.steps)
    found, rows = {}, []
    for seed in lab.seeds(FEW):
        model, scenes = lab.model(lab.default, seed, step)
        for name in RULES:
            way = lambda rows: decoded(model, scenes[rows], resolve(name))
            captions = caption(way, scenes)
            right = [one is None for one in mistakes(captions, scenes.split, scenes.board)]
            found[seed, name] = right, captions.passes
            rows.append(dict(seed=seed, step=step, rule=name, right=statistics.fmean(right),
                             passes=statistics.fmean(captions.passes)))
    level, apart, cells = 0.05 / 45 / 2, {}, []  # 45 pairs, two looks at each
    for a, b in itertools.combinations(TEN, 2):
        right, passes = (sign_test(*pair) < level for pair in zip(found[0, a], found[0, b]))
        apart[a, b] = right, passes
        rows.append(dict(seed=0, step=step, rule=a, other=b, right_differs=right,
                         passes_differ=passes))
    both = [sum(column) for column in zip(*apart.values())]
    either = sum(any(one) for one in apart.values())
    same = [f"{a} and {b}" for (a, b), one in apart.items() if not any(one)]
    text = (f"Weights after {step} steps. Of the 45 pairs of ten rules ({', '.join(TEN)}), paired "
            f"scene by scene (sign test, 5% over 45 pairs and two looks at each): {either} differ, "
            f"{both[0]} in the share right, {both[1]} in passes. Alike: "
            f"{'; '.join(same) or 'none'}.")
    if len(lab.seeds(FEW)) > 1:
        for what, of in (("share right", 0), ("passes", 1)):
            lists = [[statistics.fmean(found[seed, name][of]) for name in RULES]
                     for seed in lab.seeds(FEW)]
            cells.append([what, len(RULES), f"{tau_b(*lists):.2f}"])
        text += "\n\n" + table(["order of the rules by", "rules", "tau-b of seeds 0 and 1"], cells)
    return Finding(text, rows)


# ---------------------------------------------------------------- all of them

CLAIMS = {
    "recipe": (recipe_plan, measure_recipe, "autoregressive training first, then diffusion"),
    "length": (length_plan, measure_length, "quality against the window length at decoding"),
    "confident": (confident_plan, measure_confident,
                  "iterations and accuracy of confident decoding, by what the picture leaves open"),
    "prefill": (prefill_plan, measure_prefill, "what prefilling costs in accuracy"),
    "priors": (priors_plan, measure_priors, "structure priors, and what AR can be asked instead"),
    "loss": (loss_plan, measure_loss, "weightings of the diffusion loss, complementary masks"),
    "ranks": (ranks_plan, measure_ranks, "whether the board tells rules apart, twice alike"),
}


def claims(args, device, command):
    """Train what is missing for the claims in `args.names` and measure them; those that this code
    has measured in the same folder are shown again."""
    names, lab = args.names or list(CLAIMS), Lab(args, device)
    mark = f"<!-- {digest('*.py', 'data/*.py', 'rules/*.py', 'lab/*.py')} -->"
    missing = {name: lab.missing(CLAIMS[name][0](lab)) for name in names}
    everything = list(dict.fromkeys(one for some in missing.values() for one in some))
    with tqdm(total=len(everything) + len(names), desc="models and claims", disable=None) as bar:
        def done(made, seed):
            bar.set_postfix_str(f"trained {lab.folder(made, seed).name}")
            bar.update()
        if args.jobs > 1:  # all at once: claim by claim, most jobs would wait for the last one
            lab.train_all(everything, done)
        for name in names:
            plan, measure, about = CLAIMS[name]
            head = (f"**{name}**: {about}. At most {lab.most_seeds} seeds, {lab.n_scenes} held-out "
                    f"scenes, {lab.default.ar_steps} AR + {lab.default.diffusion_steps} diffusion "
                    f"steps by default; {where(device)}.")
            said = lab.out / f"{name}.md"
            text = said.read_text("utf-8") if said.exists() else ""
            if not (text.startswith(head) and text.endswith(mark)):
                lab.train_all([one for one in missing[name] if not lab.complete(*one)], done)
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
