"""`python -m lab claims`: the paper's claims, for each a plan (label -> Asked), a measurement, and
what it is about."""
import itertools
import math
import random
import shutil
import statistics
from typing import NamedTuple

import torch
from tqdm import tqdm

from data import toy
from lab import drawing
from lab.checkpoint import write
from lab.evaluate import THRESHOLD, batches, decoded, exact_way, graded
from lab.intervals import gap_interval, in_percent, in_points, mean_interval, share_interval
from lab.models import Lab, Recipe
from lab.results import FIGURES, in_csv, measured, table_of, where, write_part
from lab.shell import reporting
from lab.variants import unseen
from mini_dimple import decode, decode_ar, full, prefilled
from rules import resolve

FAILED = 0.9  # a run that ends below this share fully right counts as failed
MANY, SOME, FEW = 5, 3, 2  # seeds: where a verdict hangs on it, elsewhere, of a side issue
DEFAULT_RULE = f"confident:{THRESHOLD}"


class Asked(NamedTuple):
    """A model that a claim needs, and with how many seeds."""
    recipe: Recipe
    seeds: int = SOME


class Finding(NamedTuple):
    """What a claim's measurement gives: tables, lists of rows (dicts) under a line of text each,
    and charts, name of the PNG -> arguments of `drawing.chart`."""
    tables: dict
    charts: dict = {}


def right(found):
    """Captions of each seed -> right[seed][scene]."""
    return [captions.right for captions in found]


def iterations(found):
    return [captions.iterations for captions in found]


def cells(found):
    """What most tables say of the Captions of each seed."""
    return {"fully right": in_percent(share_interval(right(found))),
            "iterations": f"{mean_interval(iterations(found))[0]:.2f}"}


def failed(found):
    return f"{sum(statistics.fmean(one) < FAILED for one in right(found))} of {len(found)}"


def percentages(found):
    """Of a chart: a point's height and the ends of its error bar."""
    return [100 * share for share in share_interval(right(found))]


def against(a, b):
    """right[seed][scene] of a minus b: points, interval, and a word."""
    gap = gap_interval(a, b)
    _, low, high = gap
    word = "better" if low > 0 else "worse" if high < 0 else "no difference seen"
    return f"{in_points(gap)}: {word}"


def in_nats(values):
    """Nats above the floor, one for each seed -> their mean and its range."""
    return f"{statistics.fmean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def nats_gap(a, b):
    """a minus b, paired by seed -> mean and Student's 95% interval."""
    gap = mean_interval([[x - y] for x, y in zip(a, b)])
    return "{:+.4f} ({:+.4f} to {:+.4f})".format(*gap) if min(len(a), len(b)) > 1 else ""


# ---------------------------------------------------------------- recipe

EXAMPLES = (500, 2000)  # seen many times: 1,200 batches are 171 or 39 epochs


def recipe_pairs(lab):
    """What is compared: AR first and diffusion alone, of as many steps, and how many seeds: the
    default recipe, at three quarters and half of its steps, and with few examples."""
    ar, diffusion = lab.default[:2]
    pairs = [(Recipe(max(1, ar * part // 4), max(1, diffusion * part // 4)), MANY)
             for part in (4, 3, 2)]
    pairs += [(lab.default._replace(examples=n), SOME) for n in EXAMPLES]
    return [(first, first._replace(ar_steps=0, diffusion_steps=first.steps), seeds)
            for first, seeds in pairs]


def recipe_plan(lab):
    return {made.name(): Asked(made, seeds)
            for first, alone, seeds in recipe_pairs(lab) for made in (first, alone)}


def measure_recipe(lab, plan):
    rows, gaps, curves = [], [], {}
    for first, alone, seeds in recipe_pairs(lab):
        found, nats = {}, {}
        for made, name in ((first, "AR, then diffusion"), (alone, "diffusion alone")):
            found[name], nats[name] = lab.graded(made, seeds), lab.above_floor(made, seeds)
            rows.append({"steps": made.steps, "examples": made.examples or "all", "recipe": name,
                         "of them AR": made.ar_steps,
                         "nats above the floor (range)": in_nats(nats[name]),
                         f"runs under {FAILED:.0%}": failed(found[name]), **cells(found[name])})
            if not made.examples:
                point = statistics.fmean(nats[name]), min(nats[name]), max(nats[name])
                curves.setdefault(name, []).append((made.steps, *point, ""))
        gaps.append({"steps": first.steps, "examples": first.examples or "all",
                     "nats above the floor": nats_gap(*nats.values()),
                     "points fully right": against(*map(right, found.values()))})
    series = [drawing.Series(name, sorted(points), True, name != "diffusion alone")
              for name, points in curves.items()]
    compared = "AR first against diffusion alone, of as many steps and the same seeds:"
    return Finding({"": rows, compared: gaps}, {"recipe": (
        series, "steps", "nats per token above the floor", "What the steps buy")})


# ---------------------------------------------------------------- length

JUST = "just enough"  # each response's own length: it also tells how many objects there are


def length_plan(lab):
    kinds = (("diffusion alone", Recipe(0, lab.default.steps)), ("AR, then diffusion", lab.default))
    paddings = {"random padding": (), "no random padding": ("unpadded",)}
    return {f"{name}, {words}": Asked(made._replace(variant=variant))
            for name, made in kinds for words, variant in paddings.items()}


def measure_length(lab, plan):
    found, early, rule = {}, {}, resolve(DEFAULT_RULE)

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
                captions = graded(decoding(model, scenes, window), scenes,
                                  alike if window == JUST else None)
                key = label, window
                found.setdefault(key, []).append(captions)
                early.setdefault(key, []).append(
                    [n + 1 < wanted for n, wanted in zip(captions.tokens, scenes.lengths.tolist())])
    windows = list(dict.fromkeys(window for _, window in found))
    rows = [{"window, tokens": f"{window}, the longest trained" if window == trained else window,
             **{label: f"{in_percent(share_interval(right(found[label, window])))}; "
                       f"{share_interval(early[label, window])[0]:.0%}" for label in plan}}
            for window in windows]
    gaps = [{"window, tokens": f"{window} against {longest}: points",
             **{label: against(right(found[label, window]), right(found[label, longest]))
                for label in plan}} for window in (JUST, trained, longest * 2, longest * 3)]
    x = lambda window: scenes.response_tokens if window == JUST else window
    series = [drawing.Series(label, [(x(window), *percentages(found[label, window]), "")
                                     for window in windows], True, not plan[label].recipe.variant)
              for label in plan]
    return Finding({"Fully right, and after the semicolon the share that ends too early:":
                    rows + gaps}, {"length": (
                        series, "window at decoding, tokens", "fully right, %",
                        "Does quality depend on the window?")})


# ---------------------------------------------------------------- confident

THRESHOLDS = (0.5, 0.7, 0.9, 0.95)
COUNTS = (1, 2, 3, 4, 6, 8)


def confident_plan(lab):
    return {wording: Asked(lab.default._replace(wording=wording), SOME if wording == "two" else 1)
            for wording in toy.WORDINGS}


def by_length(found, lengths):
    """Iterations of the scenes of each length: (length, mean, low, high)."""
    points = []
    for n in lengths.unique().tolist():
        of_n = (lengths == n).nonzero()[:, 0].tolist()
        points.append((n, *mean_interval([[one[i] for i in of_n] for one in iterations(found)])))
    return points


def slope(points):
    """Least squares: iterations per token."""
    x, y = (torch.tensor(values, dtype=torch.double) for values in list(zip(*points))[:2])
    if len(x) < 2:
        return math.nan
    return (((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()).item()


def measure_confident(lab, plan):
    rows, series, trade = [], [], {"confident, by threshold": [], "fixed count per iteration": []}
    for wording, (made, seeds) in plan.items():
        found = {}
        names = [f"confident:{t}" for t in THRESHOLDS]
        names += [f"maskgit:{k}" for k in COUNTS] if wording == "two" else []
        for seed in lab.seeds(seeds):
            model, scenes = lab.model(made, seed)
            for name in names:
                way = lambda rows: decoded(model, scenes[rows], resolve(name))
                found.setdefault(("trained", name), []).append(graded(way, scenes))
        for name in names:  # of the last seed's scenes: all seeds have the same
            found["exact", name] = [graded(exact_way(scenes, resolve(name)), scenes)]
        for (kind, name), captions in found.items():
            points, mean = by_length(captions, scenes.lengths), mean_interval(iterations(captions))
            rows.append({"wordings": wording, "model": kind, "rule": f"`{name}`", **cells(captions),
                         "95% interval": f"{mean[1]:.2f} to {mean[2]:.2f}",
                         "tokens per iteration": f"{scenes.response_tokens / mean[0]:.2f}",
                         **{f"for {n} tokens": f"{m:.2f}" for n, m, *_ in points},
                         "iterations per token more": f"{slope(points):.2f}"})
            if name == DEFAULT_RULE:
                series.append(drawing.Series(f"{wording}, {kind}", [(*p, "") for p in points],
                                             True, kind == "trained"))
            if (wording, kind) == ("two", "trained"):
                which, number = name.split(":")
                trade[list(trade)[which == "maskgit"]].append(
                    (mean[0], *percentages(captions), number))
    trade = [drawing.Series(name, sorted(points), True, "confident" in name)
             for name, points in trade.items()]
    return Finding({"": rows}, {
        "confident": (trade, "iterations per caption", "fully right, %",
                      "Confident decoding against fixed counts"),
        "confident_length": (series, "response length, tokens", "iterations",
                             f"Iterations of {DEFAULT_RULE}, by wordings")})


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
    rows = []
    for label, (made, seeds) in plan.items():
        # with a prefix mask, "as published" and "never" are one
        looks = {name: look for name, look in PREFILLS.items()
                 if look is not prefilled or not made.variant}
        for name, times in itertools.product((DEFAULT_RULE, "maskgit:1"), (1, 2)):
            rule, found = resolve(name), {how: [] for how in looks}
            for seed in lab.seeds(seeds):
                model, scenes = lab.model(made, seed)
                window = model.config.window * times
                masks = torch.full((lab.n_scenes, window), model.config.mask_id,
                                   device=lab.device)
                for how, look in looks.items():
                    way = lambda rows: decoded(
                        model, (*scenes[rows][:2], masks[rows]), rule, look)
                    found[how].append(graded(way, scenes))
            rows += [{"trained with": label, "rule": f"`{name}`", "window": window,
                      "prefilling": how, **cells(found[how]),
                      "against none: points": "" if how == "none" else against(
                          right(found[how]), right(found["none"]))} for how in looks]
    return Finding({"": rows})


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
    rows = []
    for name in dict.fromkeys(name for name, _ in results):
        share = lambda way, which: in_percent(share_interval([one[which]
                                                              for one in results[name, way]]))
        rows.append({"given": name,
                     "diffusion: right (kept always, by construction)": share("diffusion", 1),
                     "exact posterior: right": share("exact", 1),
                     "AR, told what precedes the first blank: kept": share("ar", 0),
                     "kept and right": share("ar", 1)})
    return Finding({"": rows})


# ---------------------------------------------------------------- loss

DEFAULT = "1/t"  # equation (3)


def loss_plan(lab):
    variant = lambda name: lab.default._replace(variant=(name,))
    return {DEFAULT: Asked(lab.default), "flat": Asked(variant("flat")),
            "example": Asked(variant("example")),
            f"{DEFAULT}, complementary masks": Asked(variant("complementary"), FEW)}


def measure_loss(lab, plan):
    rows, default, floor = [], lab.graded(*plan[DEFAULT]), lab.above_floor(*plan[DEFAULT])
    for label, asked in plan.items():
        found, nats = lab.graded(*asked), lab.above_floor(*asked)
        seeds, other = len(nats), label != DEFAULT
        rows.append({"loss": label, "seeds": seeds, "nats above the floor (range)": in_nats(nats),
                     f"runs under {FAILED:.0%}": failed(found), **cells(found),
                     f"against {DEFAULT}: nats": nats_gap(nats, floor) if other else "",
                     "points": against(right(found), right(default[:seeds])) if other else ""})
    return Finding({"": rows})


# ---------------------------------------------------------------- all of them

CLAIMS = {
    "recipe": (recipe_plan, measure_recipe, "autoregressive training first, then diffusion"),
    "length": (length_plan, measure_length, "quality against the window length at decoding"),
    "confident": (confident_plan, measure_confident,
                  "iterations and accuracy of confident decoding, by what the picture leaves open"),
    "prefill": (prefill_plan, measure_prefill, "what prefilling costs in accuracy"),
    "priors": (priors_plan, measure_priors, "structure priors, and what AR can be asked instead"),
    "loss": (loss_plan, measure_loss, "weightings of the diffusion loss, complementary masks"),
}


def claims(args, device, command):
    """Train what is missing for the claims in `args.names` and measure them; those that are
    measured in the folder are shown again."""
    names, lab = args.names or list(CLAIMS), Lab(args, device)
    with reporting(ValueError):
        if unknown := set(names) - set(CLAIMS):
            raise ValueError(f"claims: {min(unknown)!r} is none; choose from {', '.join(CLAIMS)}")
        if args.quick and args.write:
            raise ValueError("--quick and --write: its figures mean nothing; choose one")
    missing = list(dict.fromkeys(
        one for name in names for one in lab.missing(CLAIMS[name][0](lab))))
    with tqdm(total=len(missing) + len(names), desc="models and claims", disable=None) as bar:
        with reporting(ValueError):
            lab.train(missing, lambda *one: bar.update())
        for name in names:
            plan, measure, about = CLAIMS[name]
            head = (f"**{name}**: {about}. At most {lab.most_seeds} seeds, {lab.n_scenes} held-out "
                    f"scenes, {lab.default.ar_steps} AR + {lab.default.diffusion_steps} diffusion "
                    f"steps by default; {where(device)}.")
            said = lab.out / f"{name}.md"
            text = said.read_text("utf-8") if said.exists() else ""
            if not text.startswith(head):
                bar.set_postfix_str(f"measuring {name}")
                tables, charts = measure(lab, plan(lab))
                parts = [f"{above}\n\n{table_of(rows)}".strip() for above, rows in tables.items()]
                text = "\n\n".join([head, f"{measured(command, device)} In brackets: 95% "
                                    "intervals.", *parts])
                for picture, (series, *words) in charts.items():
                    drawing.chart(lab.out / f"{picture}.png", series, *words)
                rows = [row for rows in tables.values() for row in rows]
                write(lab.out / f"{name}.csv", lambda file: file.write(in_csv(rows).encode()))
                write(said, lambda file: file.write(text.encode()))
            tqdm.write(text)
            if args.write:
                write_part(f"claims {name}", text.removeprefix(head))
                for picture in lab.out.glob(f"{name}*.png"):
                    if (FIGURES / picture.name).exists():  # what results.md shows
                        shutil.copy(picture, FIGURES)
            bar.update()
