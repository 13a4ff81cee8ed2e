"""Measure Mini-Dimple: `python bench.py rules` compares decoding rules, `decode` times decoding, `training` times training;
`recipe`, `length`, `confident`, `prefill`, `priors` and `loss` put the paper's claims to the test, `all` runs these in order.

Every figure of a table comes out of one run, so that its rows can be compared. `python bench.py COMMAND --help`."""
import argparse
import csv
import dataclasses
import functools
import hashlib
import inspect
import io
import json
import math
import random
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import mini_dimple
import train
from data import DESCRIBE, Batches, drawing, pad_prompts, pad_responses, toy, write
from mini_dimple import Config, Dimple, checkpoint, decode, decode_ar, full, load, prefilled, read_state
from rules import LOOKS, RuleError, resolve, resolve_look
from sample import SHIPPED
from train import (LAST_FORMAT, THRESHOLD, TRAINING, NotFinite, Parser, Run, autocast, count, low_precision, make_optimizers, phase_loss, pick_device,
                   prepare, script, settings_from, taken)
from train import parse as train_options

BATCH = 64


def wilson(hits, n, z=1.96):
    """Wilson's 95% interval of a share of `hits` in `n` -> (low, high)."""
    middle, half = hits + z * z / 2, z * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return (middle - half) / (n + z * z), (middle + half) / (n + z * z)


def table(head, rows):
    """A Markdown table of strings."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def now(device):
    """Seconds; on CUDA, once the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def where(device):
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, PyTorch {torch.__version__}"


def load_pair(args, device):
    """-> model, tokenizer, AR model. Raises ValueError unless they are a toy model's two phases, with one tokenizer."""
    (model, tokenizer), (ar_model, ar_tokenizer) = load(args.checkpoint, device), load(args.ar_checkpoint, device)
    for flag, path, config, phase in (("--checkpoint", args.checkpoint, model.config, "diffusion"),
                                      ("--ar-checkpoint", args.ar_checkpoint, ar_model.config, "ar")):
        if config.trained_on not in toy.TOYS:
            raise ValueError(f"{flag} {path}: trained on your own pictures; only captions of toy scenes can be graded")
        if config.phase != phase:
            raise ValueError(f"{flag} {path}: its last phase was {config.phase!r}; needed is one that ended with {phase!r}")
    if tokenizer.merges != ar_tokenizer.merges or dataclasses.replace(ar_model.config, phase="diffusion") != model.config:
        raise ValueError(f"--checkpoint {args.checkpoint} and --ar-checkpoint {args.ar_checkpoint} are not of one run: name both")
    return model, tokenizer, ar_model


class Scenes:
    """Held-out scenes on the device, and a window of masks for each."""

    def __init__(self, model, tokenizer, n, device, length=None):
        """`length` of the windows: by default the longest trained."""
        self.board, self.tokenizer = toy.TOYS[model.config.trained_on], tokenizer
        self.split = toy.examples(self.board, n, 0, held_out=True, instruction=DESCRIBE)
        self.responses, self.lengths = pad_responses(self.split.texts, tokenizer, model.config.window)  # lengths: with one EOS
        self.response_tokens = self.lengths.double().mean().item()
        self.images = self.split.images.to(device)
        self.prompts = pad_prompts(self.split.prompts, tokenizer, model.config.prompt_tokens).to(device)
        self.windows = torch.full((n, length or model.config.window), model.config.mask_id, device=device)

    def __getitem__(self, rows):
        return self.images[rows], self.prompts[rows], self.windows[rows]

    def grade(self, texts):
        """-> which are right, which are well formed: lists of bool."""
        formed, right = zip(*(toy.grade(text, scene, self.board) for text, scene in zip(texts, self.split.scenes)))
        return list(right), list(formed)


def decoded(model, batch, rule, look=prefilled, **options):
    """A batch (images, prompts, windows) through `decode`, with a look of its own -> Decoded."""
    *inputs, windows = batch
    return decode(look(model, *inputs), windows, model.config, rule, **options)


def caption(way, scenes, chunks=None):
    """Decode all scenes by `way(rows) -> Decoded`, batch by batch, or chunk by chunk of rows -> texts, iterations, passes, seconds."""
    n, device = len(scenes.images), scenes.images.device
    texts, iterations, passes = [""] * n, [0] * n, [0] * n
    torch.manual_seed(0)  # a rule may draw random numbers
    start = now(device)
    for rows in chunks or torch.arange(n).split(BATCH):
        out = way(rows)
        for b, row in enumerate(rows.tolist()):
            texts[row], iterations[row], passes[row] = scenes.tokenizer.decode(out.response(b)), out.iterations[b].item(), out.passes[b].item()
    return texts, iterations, passes, now(device) - start


def graded(way, scenes, chunks=None):
    """`caption`, and what its captions are worth: right, well formed, iterations, lists with one of each per scene."""
    texts, iterations, _, _ = caption(way, scenes, chunks)
    return *scenes.grade(texts), iterations


# ---------------------------------------------------------------- rules: the leaderboard

FIXED = ("maskgit", "entropy", "margin", "left_to_right", "random_order")
RULES = ("maskgit:1", "maskgit:2", "maskgit:5", *(f"{name}:10" for name in FIXED),
         *(f"confident:{t}" for t in (0.3, 0.5, 0.7, 0.9, 0.99)), *(f"remask:{t}" for t in (0.3, 0.5)),
         "eb_sampler:0.1", "fast_dllm:1", "klass", "blocks:16", "wino", "remdm", "dimple_public", "dimple_public:flat=1")


def grade_rule(way, scenes, alone=16):
    """Decode all scenes in batches by `way(rows)`, and the first `alone` of them one by one -> figures."""
    n, device, alone_s = len(scenes.images), scenes.images.device, []
    texts, iterations, passes, batch_s = caption(way, scenes)
    for i in range(min(alone, n)):
        start = now(device)
        way(torch.tensor([i]))
        alone_s.append(now(device) - start)
    right, formed = scenes.grade(texts)
    return dict(right=sum(right) / n, interval=wilson(sum(right), n), well_formed=sum(formed) / n,
                iterations=sum(iterations) / n, passes=sum(passes) / n, tokens_per_pass=scenes.response_tokens * n / sum(passes),
                ms_batch_1=1000 * statistics.median(alone_s), ms_batch_64=1000 * batch_s / n)


def pareto(rows):
    """Which rows no other row beats: none is at least as right in as few passes, and better in one of the two."""
    better = lambda a, b: a["right"] >= b["right"] and a["passes"] <= b["passes"] and (a["right"], a["passes"]) != (b["right"], b["passes"])
    return [not any(better(other, row) for other in rows) for row in rows]


def labels(rows):
    """rule -> its label in the picture: where marks lie almost on each other, one of them speaks for all."""
    texts, left = {}, sorted(rows, key=lambda row: (not row["yours"], not row["front"]))
    while left:
        first = left[0]
        same = [row for row in left if abs(row["passes"] - first["passes"]) < 0.4 and abs(row["right"] - first["right"]) < 0.015]
        left = [row for row in left if row not in same]
        texts |= {row["rule"]: "" for row in same} | {first["rule"]: first["rule"] + f" and {len(same) - 1} more" * (len(same) > 1)}
    return texts


def rules(args, device):
    mine, chosen, broken = args.rule or [], {}, {}
    for text in [*mine, *RULES]:  # yours first: its mistakes cost no wait
        try:
            chosen[text] = resolve(text)
        except ValueError as error:
            broken[text] = error
    if broken and len(broken) == len(set(mine)):
        raise next(iter(broken.values()))
    look = resolve_look(args.look)
    model, tokenizer, ar_model = load_pair(args, device)
    scenes = Scenes(model, tokenizer, args.scenes, device, args.length)
    rows, start = [], time.perf_counter()
    stems = [rule.__name__ for rule in chosen.values()]
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
    baseline = grade_rule(lambda rows: decode_ar(ar_model, *scenes[rows][:2], model.config.window), scenes)
    rows.append(dict(rule="AR phase, greedy, KV cache", yours=False, front=False, **baseline))
    print(f"{args.scenes} held-out scenes, {args.checkpoint.name}, look {args.look}; {where(device)}; "
          f"{time.perf_counter() - start:.0f} s. Interval: 95%, Wilson's, over scenes. ● on the front: no rule is as right in fewer passes. "
          "★ yours. An iteration asks the rule once, a pass runs the model once.\n")
    print(table(["rule", "", "fully right", "95% interval", "well formed", "iterations", "passes", "tokens per pass", "ms per caption, batch 1",
                 "batch 64"],
                [[f"`{r['rule']}`", "●" * r["front"] + "★" * r["yours"], f"{r['right']:.1%}", "{:.1%} to {:.1%}".format(*r["interval"]),
                  f"{r['well_formed']:.1%}", f"{r['iterations']:.2f}", f"{r['passes']:.2f}", f"{r['tokens_per_pass']:.2f}", f"{r['ms_batch_1']:.1f}",
                  f"{r['ms_batch_64']:.2f}"] for r in rows] + [[f"`{text}`", "★" * (text in mine), " ".join(str(error).split()).replace("|", "\\|"), *[""] * 7]
                                                               for text, error in broken.items()]))
    names = labels(rows[:-1])
    point = lambda row: (row["passes"], 100 * row["right"], *(100 * end for end in row["interval"]), names[row["rule"]])
    groups = {"on the front": [r for r in rows[:-1] if r["front"] and not r["yours"]],
              "others": [r for r in rows[:-1] if not r["front"] and not r["yours"]], "yours": [r for r in rows if r["yours"]]}
    drawing.chart(args.picture, [drawing.Series(name, [point(r) for r in members], name == "on the front", name != "others")
                                 for name, members in groups.items() if members],
                  "passes per caption", "fully right, %", "Decoding rules")
    print(f"\nthe front as a picture: {args.picture}")
    return rows + [dict(rule=text, yours=text in mine, error=str(error)) for text, error in broken.items()]


# ---------------------------------------------------------------- decode: wall time

def compiled(score):
    """`Dimple.score` through torch.compile: static shapes, and CUDA graphs where there is CUDA."""
    fast = torch.compile(score, dynamic=False, mode="reduce-overhead")

    def wrapper(*arguments, **options):
        logits, cache = fast(*arguments, **options)
        return logits.clone(), [(k.clone(), v.clone()) for k, v in cache]  # the next replay of a graph overwrites its outputs
    return wrapper


def timed(ways, device, repeats):
    """name -> function, run in turns -> name -> median seconds. Everything once before, to warm up."""
    seconds = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = now(device)
            way(turn)
            if turn:
                seconds[name].append(now(device) - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def share_in_model(model, batch, rule, device, repeats=5):
    """Of the wall time of `decode`, the share spent inside the model's forward passes, vision encoder included."""
    inside = 0.0

    def clocked(method):
        def wrapper(*arguments, **options):
            nonlocal inside
            start = now(device)
            answer = method(*arguments, **options)
            inside += now(device) - start
            return answer
        return wrapper
    decoded(model, batch, rule)
    model.prefix, model.score = clocked(model.prefix), clocked(model.score)
    start = now(device)
    for _ in range(repeats):
        decoded(model, batch, rule)
    whole = now(device) - start
    del model.prefix, model.score  # the class's own methods again
    return inside / whole


def captions_per_way(args, device):
    """Wall time per caption of each way to decode, batch 1 and 64 -> rows; and the share of it inside the model."""
    model, tokenizer, ar_model = load_pair(args, device)
    rule, one = resolve(f"confident:{THRESHOLD}"), resolve("maskgit:1")
    scenes, rows = Scenes(model, tokenizer, BATCH, device), []
    share = None if args.compile else share_in_model(model, scenes[:BATCH], rule, device)
    if args.compile:
        model.score, ar_model.transformer = compiled(model.score), torch.compile(ar_model.transformer, dynamic=True)
    for batch, repeats in ((1, args.repeats), (BATCH, max(3, args.repeats // 6))):
        at = lambda turn: scenes[turn * batch % BATCH:turn * batch % BATCH + batch]  # in each turn the same scenes for all
        seconds = timed({
            "greedy AR, KV cache": lambda turn: decode_ar(ar_model, *at(turn)[:2], model.config.window),
            "confident, prefilling": lambda turn: decoded(model, at(turn), rule),
            "confident, no prefilling": lambda turn: decoded(model, at(turn), rule, full),
            "one token per iteration, prefilling": lambda turn: decoded(model, at(turn), one)}, device, repeats)
        rows += [dict(batch=batch, way=name, ms=1000 * s / batch, speedup_over_ar=seconds["greedy AR, KV cache"] / s)
                 for name, s in seconds.items()]
    return rows, share


SWEEP = tuple((visual, window) for visual in (9, 64, 256, 1024) for window in (48, 144))


def prefill_sweep(device, repeats):
    """Prefilling's wall-time ratio over visual tokens and window lengths, batch 1, random weights, 4 tokens per iteration."""
    rows, four = [], resolve("left_to_right:4")
    for visual, window in SWEEP:
        torch.manual_seed(0)
        model = Dimple(Config(vocab_size=320, eos_id=318, mask_id=319, image_px=16 * math.isqrt(visual))).to(device).eval()
        batch = (torch.randint(0, 256, (1, 3, model.config.image_px, model.config.image_px), dtype=torch.uint8, device=device),
                 torch.zeros(1, 3, dtype=torch.long, device=device), torch.full((1, window), 319, device=device))
        with torch.no_grad():
            seconds = timed({"with": lambda turn: decoded(model, batch, four), "without": lambda turn: decoded(model, batch, four, full),
                             "encoder": lambda turn: model.prefix(*batch[:2])}, device, repeats)
        rows.append(dict(visual_tokens=visual, window=window, iterations=window // 4, ratio=seconds["without"] / seconds["with"],
                         **{f"ms_{name}": 1000 * s for name, s in seconds.items()}))
    return rows


def decode_speed(args, device):
    rows, share = captions_per_way(args, device)
    print(f"{where(device)}{', --compile' if args.compile else ''}; {args.checkpoint.name} and {args.ar_checkpoint.name}; "
          "medians, the ways timed in turn\n")
    print(table(["batch", "way", "ms per caption", "times as fast as greedy AR"],
                [[r["batch"], r["way"], f"{r['ms']:.2f}", f"{r['speedup_over_ar']:.2f}"] for r in rows]))
    if args.compile:
        return dict(device=where(device), compile=True, ways=rows)
    print(f"\nBatch {BATCH}, confident, prefilling: {share:.0%} of the wall time is inside the model's forward pass.")
    sweep = prefill_sweep(device, max(3, args.repeats // 6))
    print("\nPrefilling, batch 1, random weights of the default size, 4 tokens per iteration:\n")
    print(table(["visual tokens", "window", "iterations", "ms with", "ms without", "ratio", "of it image encoder, ms"],
                [[r["visual_tokens"], r["window"], r["iterations"], f"{r['ms_with']:.1f}", f"{r['ms_without']:.1f}",
                  f"{r['ratio']:.2f}", f"{r['ms_encoder']:.1f}"] for r in sweep]))
    return dict(device=where(device), compile=False, ways=rows, share_in_model=share, prefill=sweep)


# ---------------------------------------------------------------- training: ms per step, and where they go

KINDS = {"matrix products": "mm", "attention": "attention", "elementwise, norms, softmax, copies": ""}  # part of an operation's name; the first fits


def matrix_rate(device, dtype, repeats=10, n=2048):
    """What the machine reaches in a matrix product (n, n) x (n, n), FLOP/s: the median."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in "ab")
    return 2 * n ** 3 / timed({"product": lambda turn: a @ b}, device, repeats)["product"]


def step_parts(phase, prepared, args, device):
    """Median seconds of a step's parts, as training does it; median FLOP of its forward and backward passes (on the CPU without
    attention's, which PyTorch does not count there); the share of each kind of operation in these passes' time (not of a
    compiled model, whose operations have names of their own); how often a step launches work on the GPU (0 on the CPU)."""
    split, _, tokenizer, config, _ = prepared
    training = TRAINING[args.preset]
    torch.manual_seed(0)
    model, generator = Dimple(config).to(device), torch.Generator(device)
    forward = torch.compile(model) if args.compile else model
    optimizers = make_optimizers(model, training["muon_lr"], training["adamw_lr"])
    batches, seconds = Batches(split, tokenizer, config, training["batch_size"], 0, device), {}

    def clocked(name, work):
        start = now(device)
        answer = work()
        seconds.setdefault(name, []).append(now(device) - start)
        return answer

    def gradient(batch, forward):
        with autocast(device):
            loss = phase_loss(forward, batch, phase, generator)
        loss.backward()

    def update():
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for step in range(args.repeats + 3):
        batch = clocked("batch", lambda: batches(step, phase))
        clocked("forward and backward", lambda: gradient(batch, forward))
        clocked("optimizers", update)
    parts = {name: statistics.median(times[3:]) for name, times in seconds.items()}
    flop = []
    for step in range(3, args.repeats + 3):
        with FlopCounterMode(display=False) as counter:
            gradient(batches(step, phase), model)
        flop.append(counter.get_total_flops())
    with torch.profiler.profile() as profile:
        batch = batches(step, phase)
        gradient(batch, forward)
        update()
    launches = sum(event.count for event in profile.key_averages() if "LaunchKernel" in event.key or "GraphLaunch" in event.key)
    with torch.profiler.profile() as profile:
        gradient(batch, model)
    kinds = dict.fromkeys(KINDS, 0.0)
    for event in filter(lambda event: event.key.startswith("aten::"), profile.key_averages()):
        kind = next(kind for kind, part in KINDS.items() if part in event.key)
        kinds[kind] += event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
    return parts, statistics.median(flop), {kind: share / sum(kinds.values()) for kind, share in kinds.items()}, launches


def training_speed(args, device):
    size, rows, settings = TRAINING[args.preset]["batch_size"], [], settings_from(train_options(["--device", device.type, "--preset", args.preset])[1])
    prepared = prepare(settings, examples=2000)
    for phase in ("ar", "diffusion"):
        parts, flop, kinds, launches = step_parts(phase, prepared, args, device)
        whole, rate = sum(parts.values()), matrix_rate(device, low_precision(device))
        rows.append(dict(phase=phase, ms_per_step=1000 * whole, images_per_s=size / whole, gflop_per_step=flop / 1e9, matrix_gflops=rate / 1e9,
                         share_of_matrix_rate=flop / whole / rate, launches_per_step=launches, **{f"share_{name}": s / whole for name, s in parts.items()},
                         **{f"share_{kind}": share * parts["forward and backward"] / whole for kind, share in kinds.items()}))
    print(f"{where(device)}; preset {args.preset}{', --compile' * args.compile}, batches of {size}; medians over {args.repeats} steps")
    bf16 = matrix_rate(device, torch.bfloat16, n=256) / matrix_rate(device, torch.float32, n=256)  # small: emulated, it takes long
    words = "" if device.type == "cuda" else f" PyTorch uses this CPU as {torch.backends.cpu.get_cpu_capability()}."
    print(f"Training computes in {str(low_precision(device)).removeprefix('torch.')}.{words} A matrix product in bf16 runs at {bf16:.2g} times "
          "float32's rate (256 x 256)\n")
    print(table(["phase", "ms per step", "images/s", "GFLOP per step", "machine's matrix rate, GFLOP/s", "training reaches of it",
                 "launches per step"],
                [[r["phase"], f"{r['ms_per_step']:.0f}", f"{r['images_per_s']:.0f}", f"{r['gflop_per_step']:.1f}", f"{r['matrix_gflops']:.0f}",
                  f"{r['share_of_matrix_rate']:.0%}", r["launches_per_step"] or "none: no GPU"] for r in rows]))
    kinds = [*([] if args.compile else KINDS), "optimizers", "batch"]
    print("\nWhere a step's time goes:\n")
    print(table(["phase", *kinds], [[r["phase"], *(f"{r[f'share_{kind}']:.0%}" for kind in kinds)] for r in rows]))
    return dict(device=where(device), preset=args.preset, compile=args.compile, bf16_over_float32=bf16, phases=rows)


# ---------------------------------------------------------------- claims: the models they need, and intervals

TRAINED_BY = (Config, mini_dimple.Block, mini_dimple.ViT, mini_dimple.Projector, Dimple, mini_dimple.rotary_table, mini_dimple.rotate,
              mini_dimple.token_nll, mini_dimple.ar_loss, mini_dimple.draw_t, mini_dimple.forward_process, mini_dimple.weigh,
              mini_dimple.diffusion_loss, mini_dimple.schedule, Batches, train.low_precision,
              train.orthogonalise, train.Muon, make_optimizers, phase_loss, Run.train)  # a change trains anew
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, 97.5% point, 1 to 9 degrees of freedom


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Recipe(NamedTuple):
    """What a claim trains: steps of both phases, and train.py's options of the diffusion phase."""
    ar_steps: int
    diffusion_steps: int
    weighting: str = "flat"
    complementary: bool = False
    padding: str = "random"
    prefix_mask: bool = False

    @property
    def steps(self):
        return self.ar_steps + self.diffusion_steps


class Lab:
    """The models that the claims share, trained where they are missing, and the scenes they are measured on."""

    def __init__(self, args, device):
        self.out, self.device = args.out / "quick" if args.quick else args.out, device
        self.seeds = range(1 if args.quick else args.seeds)
        self.n_scenes = 8 if args.quick else args.scenes
        self.default = Recipe(4, 8) if args.quick else Recipe(TRAINING["tiny"]["ar_steps"], TRAINING["tiny"]["diffusion_steps"])
        self.prepared = functools.lru_cache(lambda seed: prepare(self.settings(self.default, seed)))
        self.trained_by = "".join(map(inspect.getsource, TRAINED_BY)) + device.type
        self.graded, self.scenes = {}, {}

    def settings(self, recipe, seed):
        default = settings_from(train_options(["--device", self.device.type, "--seed", str(seed)])[1])
        name = {(True, True): "ar-then-diffusion", (False, True): "diffusion", (True, False): "ar"}[recipe.ar_steps > 0, recipe.diffusion_steps > 0]
        return {**default, **recipe._asdict(), "recipe": name}

    def folder(self, recipe, seed):
        words = [f"{name}_{value}" for name, value in recipe._asdict().items() if value != Recipe._field_defaults.get(name)]
        return self.out / "models" / "-".join([*words, f"seed_{seed}", digest(self.trained_by + self.prepared(seed)[-1])])

    def kept(self, recipe):
        """At which steps the weights are kept: of the default recipe at each quarter of the diffusion phase, of others at the end."""
        quarters = [recipe.ar_steps + recipe.diffusion_steps * quarter // 4 for quarter in (1, 2, 3, 4)]
        return quarters if recipe == self.default else [recipe.steps]

    def path(self, recipe, seed, step=None):
        return self.folder(recipe, seed) / f"step_{step or recipe.steps}.pt"

    def missing(self, plan):
        """(recipe, seed) of every model of the plan that must still be trained, the AR phase of each before it."""
        wanted = [(made, seed) for recipe in plan.values() for made in (Recipe(recipe.ar_steps, 0), recipe)
                  if made.steps for seed in self.seeds]
        return [one for one in dict.fromkeys(wanted) if not self.complete(*one)]

    def complete(self, recipe, seed):
        """Trained; and an AR phase can be gone on from."""
        return self.path(recipe, seed).exists() and bool(recipe.diffusion_steps or (self.folder(recipe, seed) / "last.pt").exists())

    def train(self, recipe, seed):
        """Train a model, or go on where an earlier call was interrupted; `missing` before it are there.

        An AR phase is trained once and shared by all recipes that begin with it: its steps do not depend on what follows."""
        folder, settings, state = self.folder(recipe, seed), self.settings(recipe, seed), None
        last, of_ar = folder / "last.pt", self.folder(Recipe(recipe.ar_steps, 0), seed) / "last.pt"
        with taken(folder):
            if last.exists():
                state = read_state(last, LAST_FORMAT)
            elif recipe.ar_steps and recipe.diffusion_steps:
                state = {**read_state(of_ar, LAST_FORMAT), "settings": settings}
            run = Run(settings, folder, self.device, state, self.prepared(seed))
            run.model.config.phase = "diffusion" if recipe.diffusion_steps else "ar"
            for step in self.kept(recipe):
                if step >= run.step:
                    try:
                        run.train(step)
                    except NotFinite as error:
                        raise NotFinite(f"{folder}: {error}; delete this folder to train it again") from error
                    write(self.path(recipe, seed, step), lambda file: torch.save(checkpoint(run.model, run.tokenizer), file))
            if recipe.diffusion_steps:
                last.unlink()

    def model(self, recipe, seed, step=None):
        """-> the trained model and the scenes."""
        model, tokenizer = load(self.path(recipe, seed, step), self.device)
        if seed not in self.scenes:
            self.scenes[seed] = Scenes(model, tokenizer, self.n_scenes, self.device)
        return model, self.scenes[seed]

    def grade(self, recipe, seed, step=None):
        """A model's captions, decoded as usual: right, well formed, iterations, one of each per scene. Measured once."""
        key = recipe, seed, step or recipe.steps
        if key not in self.graded:
            model, scenes = self.model(*key)
            self.graded[key] = graded(default_way(model, scenes), scenes)
        return self.graded[key]

    def grades(self, recipe):
        return [self.grade(recipe, seed) for seed in self.seeds]


def default_way(model, scenes):
    """How a model captions unless a claim says otherwise: rows -> Decoded."""
    if model.config.phase == "ar":
        return lambda rows: decode_ar(model, *scenes[rows][:2], model.config.window)
    return lambda rows: decoded(model, scenes[rows], resolve(f"confident:{THRESHOLD}"))


def mean_interval(values):
    """values[seed][scene], numbers -> their mean and its 95% interval: the wider of Student's t over seeds (if there are
    several) and the normal approximation over scenes. Differences of paired values are values, too."""
    values = torch.tensor(values, dtype=torch.float64)
    seeds, scenes = values.shape
    half = 1.96 * values.mean(0).std().item() / math.sqrt(scenes) if scenes > 1 else 0.0
    if seeds > 1:
        half = max(half, T95[seeds - 2] * values.mean(1).std().item() / math.sqrt(seeds))
    return values.mean().item(), values.mean().item() - half, values.mean().item() + half


def share_interval(hits):
    """hits[seed][scene], bools -> share and 95% interval, as `mean_interval`, but Wilson's over scenes: it knows 0 and 1."""
    share, low, high = mean_interval(hits)
    wilson_low, wilson_high = wilson(share * len(hits[0]), len(hits[0]))
    return share, max(0.0, min(low, wilson_low)), min(1.0, max(high, wilson_high))


def gap_interval(a, b):
    """Share a minus share b, of the same seeds and scenes, and its 95% interval: as `mean_interval`, but over scenes Agresti and
    Min's, which adds half a scene to each of the four outcomes of a pair: no difference seen is no proof of none."""
    differences = [[x - y for x, y in zip(*pair)] for pair in zip(a, b)]
    gap, low, high = mean_interval(differences)
    scenes = torch.tensor(differences, dtype=torch.float64).mean(0)
    half = max((high - low) / 2, 1.96 * math.sqrt(((scenes - gap) ** 2).sum().item() + 1) / (len(scenes) + 2))
    return gap, max(-1.0, gap - half), min(1.0, gap + half)


def in_percent(interval):
    return "{:.1f}% ({:.1f} to {:.1f})".format(*(100 * value for value in interval))


def in_points(interval):
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in interval))


# ---------------------------------------------------------------- the claims: for each a plan (label -> Recipe) and a function

class Finding(NamedTuple):
    """What a claim's measurement gives."""
    text: str        # Markdown
    rows: list       # dicts, for the CSV
    charts: dict = {}  # name of the PNG -> (list of Series, x label, y label, title)


FAILED = 0.9  # a run that ends below this share fully right counts as failed


def columns(grades):
    """[(right, well formed, iterations) of each seed] -> three lists over seeds."""
    return [list(column) for column in zip(*grades)]


def figures(label, grades):
    """The row of a CSV that every claim shares."""
    right, formed, iterations = columns(grades)
    share, low, high = share_interval(right)
    return dict(label=label, right=share, right_low=low, right_high=high, well_formed=mean_interval(formed)[0],
                iterations=mean_interval(iterations)[0], each_seed=" ".join(f"{statistics.fmean(r):.4f}" for r in right))


def right_and_iterations(grades):
    """Two cells of a table, with their intervals."""
    right, _, iterations = columns(grades)
    return in_percent(share_interval(right)), "{:.2f} ({:.2f} to {:.2f})".format(*mean_interval(iterations))


def percentages(row):
    """A point's height and error bar."""
    return [100 * row[key] for key in ("right", "right_low", "right_high")]


def failed(right):
    return f"{sum(statistics.fmean(one) < FAILED for one in right)} of {len(right)}"


def budgets(lab):
    """The default recipe, and at half its steps."""
    ar, diffusion = lab.default[:2]
    return lab.default, Recipe(ar // 2, diffusion // 2)


def recipe_plan(lab):
    """Both budgets by the default split, as AR alone and as diffusion alone; the smaller one with half as much AR, too."""
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
        row = dict(steps=steps, ar_steps=made.ar_steps, **figures(label, grades), failed=failed(right[made]))
        rows.append(row)
        curves.setdefault(steps, []).append((100 * made.ar_steps / steps, *percentages(row), ""))
        kind = "AR alone, greedy" if not made.diffusion_steps else "AR, then diffusion" if made.ar_steps else "diffusion alone"
        cells.append([steps, kind, made.ar_steps, in_percent(share_interval(right[made])), in_percent(share_interval(formed)),
                      failed(right[made]), f"{row['iterations']:.2f}"])
    gaps = [[made.steps, name, in_points(gap_interval(right[made], right[other]))] for made in budgets(lab)
            for name, other in (("diffusion alone", Recipe(0, made.steps)), ("AR alone", Recipe(made.steps, 0)))]
    text = "\n\n".join([
        table(["steps", "recipe", "of them AR", "fully right", "well formed", f"runs under {FAILED:.0%}", "iterations"], cells),
        table(["steps", "AR, then diffusion, against", "points fully right"], gaps)])
    series = [drawing.Series(f"{steps} steps", sorted(points), True, True) for steps, points in curves.items()]
    return Finding(text, rows, {"recipe": (series, "share of the steps that are autoregressive, %", "fully right, %", "How to split the budget")})


JUST = "just enough"  # each response's own length: it also tells how many objects there are


def length_plan(lab):
    kinds = (("diffusion alone", Recipe(0, lab.default.steps)), ("AR, then diffusion", lab.default))
    paddings = {"random padding": "random", "no random padding": "none"}
    return {f"{name}, {words}": made._replace(padding=padding) for name, made in kinds for words, padding in paddings.items()}


def measure_length(lab, plan):
    grades, rule = {}, resolve(f"confident:{THRESHOLD}")
    for label, made in plan.items():
        for seed in lab.seeds:
            model, scenes = lab.model(made, seed)
            longest, trained = int(scenes.lengths.max()), model.config.window
            alike = [part for n in scenes.lengths.unique() for part in (scenes.lengths == n).nonzero()[:, 0].split(BATCH)]
            for window in (JUST, longest, (longest + trained) // 2, trained, trained * 4 // 3, trained * 5 // 3, trained * 2):
                def way(rows):
                    tokens = int(scenes.lengths[rows[0]]) if window == JUST else window
                    masks = torch.full((len(rows), tokens), model.config.mask_id, device=lab.device)
                    return decoded(model, (*scenes[rows][:2], masks), rule)
                grades.setdefault(label, {}).setdefault(window, []).append(graded(way, scenes, alike if window == JUST else None))
    rows, series = [], []
    for label, by_window in grades.items():
        mine = [dict(window=window, **figures(label, found)) for window, found in by_window.items()]
        rows += mine
        series.append(drawing.Series(label, [(scenes.response_tokens if row["window"] == JUST else row["window"], *percentages(row), "")
                                             for row in mine], True, plan[label].padding == "random"))
    right = {label: {window: columns(found)[0] for window, found in by_window.items()} for label, by_window in grades.items()}
    windows = list(next(iter(right.values())))
    words = {trained: f"{trained}, the longest trained"}
    cells = [[words.get(window, window), *(in_percent(share_interval(right[label][window])) for label in plan)] for window in windows]
    cells += [[f"{window} against {longest}: points", *(in_points(gap_interval(right[label][window], right[label][longest])) for label in plan)]
              for window in (JUST, trained, 2 * trained)]
    return Finding(table(["window, tokens", *plan], cells), rows,
                   {"length": (series, "window at decoding, tokens", "fully right, %", "Does quality depend on the window?")})


CONFIDENT = (*(f"confident:{t}" for t in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)), *(f"maskgit:{k}" for k in (1, 2, 3, 4, 6, 8, 12)))


def confident_plan(lab):
    return {"default": lab.default}


def measure_confident(lab, plan):
    by_rule, by_step = {}, {}
    for seed in lab.seeds:
        model, scenes = lab.model(lab.default, seed)
        for name in CONFIDENT:
            by_rule.setdefault(name, []).append(graded(lambda rows: decoded(model, scenes[rows], resolve(name)), scenes))
        for step in lab.kept(lab.default):
            by_step.setdefault(step - lab.default.ar_steps, []).append(lab.grade(lab.default, seed, step))
    rows, cells, curves, one_by_one = [], [], {"confident": [], "maskgit": []}, columns(by_rule["maskgit:1"])[0]
    for name, grades in by_rule.items():
        rows.append(row := figures(name, grades))
        cells.append([f"`{name}`", *right_and_iterations(grades), in_points(gap_interval(columns(grades)[0], one_by_one)),
                      f"{scenes.response_tokens / row['iterations']:.2f}"])
        kind, number = name.split(":")
        curves[kind].append((row["iterations"], *percentages(row), number))
    text = table(["rule", "fully right", "iterations", "against one per iteration: points", "response tokens per iteration"], cells)
    cells, lengths, by_length = [], scenes.lengths.unique().tolist(), {}
    for steps, grades in by_step.items():
        rows.append(row := dict(diffusion_steps=steps, **figures(f"confident:{THRESHOLD}", grades)))
        for n in lengths:
            of_n = (scenes.lengths == n).nonzero()[:, 0].tolist()
            mean, low, high = mean_interval([[iterations[i] for i in of_n] for _, _, iterations in grades])
            by_length.setdefault(steps, []).append((n, mean, low, high, ""))
            rows.append(dict(diffusion_steps=steps, label=f"confident:{THRESHOLD}", response_tokens=n, iterations=mean,
                             iterations_low=low, iterations_high=high))
        cells.append([steps, *right_and_iterations(grades), f"{scenes.response_tokens / row['iterations']:.2f}",
                      *(f"{mean:.2f}" for _, mean, *_ in by_length[steps])])
    text += f"\n\n`confident:{THRESHOLD}` as training goes on:\n\n" + table(
        ["diffusion steps", "fully right", "iterations", "response tokens per iteration", *(f"iterations for {n} tokens" for n in lengths)], cells)
    names = {"confident": "confident, by threshold", "maskgit": "fixed count per iteration"}
    series = [drawing.Series(f"{steps} diffusion steps", points, True, steps == lab.default.diffusion_steps) for steps, points in by_length.items()]
    series.append(drawing.Series("response length / 3", [(n, n / 3, None, None, "") for n in lengths], True, False))
    return Finding(text, rows, {
        "confident": ([drawing.Series(names[kind], sorted(points), True, kind == "confident") for kind, points in curves.items()],
                      "iterations per caption", "fully right, %", "Confident decoding against fixed counts"),
        "confident_length": (series, "response length, tokens", "iterations", f"Iterations of confident:{THRESHOLD} by response length")})


def prefill_plan(lab):
    return {"full attention": lab.default, "prefix cannot see the response": lab.default._replace(prefix_mask=True)}


PREFILLS = {"none": (full, False), "as published": (prefilled, False), "prefix that never saw the window": (prefilled, True)}  # look, prefix_mask


def measure_prefill(lab, plan):
    rows, cells, none, batch, rule = [], [], None, min(BATCH, lab.n_scenes), resolve(f"confident:{THRESHOLD}")
    for label, made in plan.items():
        ways = dict(PREFILLS)
        if made.prefix_mask:
            del ways["as published"]  # the same as a prefix that never saw the window
        grades, ms = {name: [] for name in ways}, {name: [] for name in ways}
        for seed in lab.seeds:
            model, scenes = lab.model(made, seed)

            def decoding(name):
                def way(rows):
                    model.config.prefix_mask = made.prefix_mask or ways[name][1]
                    return decoded(model, scenes[rows], rule, ways[name][0])
                return way
            for name in ways:
                grades[name].append(graded(decoding(name), scenes))
            for name, s in timed({name: lambda turn, way=decoding(name): way(slice(0, batch)) for name in ways}, lab.device, 5).items():
                ms[name].append(1000 * s / batch)
        none = none or columns(grades["none"])[0]  # of the first model, the one with full attention
        for name in ways:
            right = columns(grades[name])[0]
            row = dict(trained=label, **figures(name, grades[name]), ms_per_caption=statistics.median(ms[name]),
                       time_ratio=statistics.median(a / b for a, b in zip(ms["none"], ms[name])))
            rows.append(row)
            cells.append([label, name, in_percent(share_interval(right)), in_points(gap_interval(right, none)) if cells else "",
                          f"{row['iterations']:.2f}", f"{row['ms_per_caption']:.2f}", f"{row['time_ratio']:.2f}"])
    return Finding(table(["trained with", "prefilling", "fully right", "against the first row: points", "iterations",
                          f"ms per caption, batch {batch}", "times as fast as none"], cells), rows)


def priors_plan(lab):
    return {"default": lab.default, "AR phase": Recipe(lab.default.ar_steps, 0)}


class Prior(NamedTuple):
    """A window with given tokens, and the scene that its caption is graded against; `shorter` asks for an object fewer."""
    window: torch.Tensor  # (W,)
    scene: tuple
    shorter: bool = False


def make_priors(ids, scene, config, tokenizer, board, rng):
    """ids (W,): a right caption -> name -> Prior. The first phrase of a caption is "a SIZE COLOUR SHAPE PREPOSITION" from place 3 on."""
    opening, phrase = range(3), range(4, 8)
    end = (ids == config.eos_id).nonzero()[0, 0].item()

    def window(given, tokens=ids):
        masks = torch.full_like(ids, config.mask_id)
        masks[list(given)] = tokens[list(given)]
        return masks
    lie = rng.choice([colour for colour in toy.COLOURS if colour != scene[0].colour])
    lied, lied_scene = ids.clone(), (scene[0]._replace(colour=lie), *scene[1:])
    lied[5] = tokenizer.encode(" " + lie)[0]
    W = len(ids)
    priors = {
        "nothing": Prior(window([]), scene),
        "length": Prior(window(range(end, W)), scene),
        "wording: opening": Prior(window(opening), scene),
        "wording: opening and first preposition": Prior(window([*opening, 7]), scene),
        "blanks: first object and its preposition": Prior(window([i for i in range(W) if i not in phrase]), scene),
        "one fact: the first colour": Prior(window([5]), scene),
        "one fact, wrong": Prior(window([5], lied), lied_scene),
        "one fact, wrong, and all before it": Prior(window(range(6), lied), lied_scene),
    }
    if len(scene) > 1:
        words = tokenizer.encode(toy.caption(scene[:-1], board, toy.OPENINGS[0], toy.PREPOSITIONS[0]))
        shorter = torch.full_like(ids, config.eos_id)
        priors["length of one object fewer"] = Prior(window(range(len(words), W), shorter), scene, True)
    return priors


def follow(tokens, prior, tokenizer, board, config):
    """-> is each given token in its place; if so, is the caption right: the scene's, or of one object fewer and all of it true."""
    given = prior.window != config.mask_id
    kept = torch.equal(tokens[given], prior.window[given])
    words = tokens != config.eos_id
    whole = not (words[1:] & ~words[:-1]).any()  # no EOS before a word
    text = tokenizer.decode(tokens[words].tolist())
    if prior.shorter:
        stated = toy.parse(text, board)
        right = stated is not None and len(stated) == len(prior.scene) - 1 and list(stated) == [o for o in prior.scene if o in stated]
    else:
        right = toy.grade(text, prior.scene, board)[1]
    return kept, kept and whole and right


def measure_priors(lab, plan):
    rule, results = resolve(f"confident:{THRESHOLD}"), {}
    for seed in lab.seeds:
        (model, scenes), (ar_model, _) = (lab.model(made, seed) for made in plan.values())
        config, rng = model.config, random.Random(0)
        asked = [make_priors(ids, scene, config, scenes.tokenizer, scenes.board, rng) for ids, scene in zip(scenes.responses, scenes.split.scenes)]
        for name in dict.fromkeys(name for of_one in asked for name in of_one):
            rows = torch.tensor([i for i, of_one in enumerate(asked) if name in of_one])
            mine = [asked[i][name] for i in rows]
            answers = {"diffusion": [], "ar": []}
            for part, some in zip(rows.split(BATCH), torch.stack([prior.window for prior in mine]).split(BATCH)):
                images, prompts, some = *scenes[part][:2], some.to(lab.device)
                answers["diffusion"] += decoded(model, (images, prompts, some), rule).tokens.cpu()
                told = some[:, :int((some[0] == config.mask_id).long().argmax())]  # what precedes the first blank: alike in all windows
                rest = decode_ar(ar_model, images, torch.cat([prompts, told], 1), config.window - told.shape[1])
                answers["ar"] += torch.cat([told, rest.tokens], 1).cpu()
            for way, tokens in answers.items():
                graded = [follow(t, prior, scenes.tokenizer, scenes.board, config) for t, prior in zip(tokens, mine)]
                results.setdefault((name, way), []).append(tuple(map(list, zip(*graded))))
    rows, cells = [], []
    for name in dict.fromkeys(name for name, _ in results):
        cells.append([name])
        for way in ("diffusion", "ar"):
            kept, right = (share_interval(list(column)) for column in zip(*results[name, way]))
            rows.append(dict(prior=name, way=way, **dict(zip(("kept", "kept_low", "kept_high"), kept)),
                             **dict(zip(("right", "right_low", "right_high"), right))))
            cells[-1] += [in_percent(kept), in_percent(right)]
    head = ["given", "diffusion: kept (always, by construction)", "kept and right", "AR, told what precedes the first blank: kept", "kept and right"]
    return Finding(table(head, cells), rows)


def loss_plan(lab):
    return {"flat": lab.default, "example": lab.default._replace(weighting="example"), "elbo": lab.default._replace(weighting="elbo"),
            "flat, complementary masks": lab.default._replace(complementary=True)}


def measure_loss(lab, plan):
    rows, cells, flat = [], [], columns(lab.grades(lab.default))[0]
    for label, made in plan.items():
        grades = lab.grades(made)
        right, _, _ = columns(grades)
        share, iterations = right_and_iterations(grades)
        rows.append(figures(label, grades))
        cells.append([label, share, "" if made == lab.default else in_points(gap_interval(right, flat)), failed(right), iterations])
    return Finding(table(["loss", "fully right", "against flat: points", f"runs under {FAILED:.0%}", "iterations"], cells), rows)


CLAIMS = {  # plan, measurement, what it is about
    "recipe": (recipe_plan, measure_recipe, "autoregressive training first, then diffusion"),
    "length": (length_plan, measure_length, "quality against the window length at decoding"),
    "confident": (confident_plan, measure_confident, "iterations and accuracy of confident decoding"),
    "prefill": (prefill_plan, measure_prefill, "prefilling: accuracy and wall time"),
    "priors": (priors_plan, measure_priors, "structure priors, and what AR can be asked instead"),
    "loss": (loss_plan, measure_loss, "weightings of the diffusion loss, complementary masks"),
}


def claims(args, device):
    names = list(CLAIMS) if args.command == "all" else [args.command]
    lab, root = Lab(args, device), Path(__file__).parent
    sources = sorted(path for folder in (".", "data", "rules") for path in (root / folder).glob("*.py"))
    mark = f"<!-- {digest(''.join(path.read_text('utf-8') for path in sources))} -->"  # of all code: after any change tables are measured anew
    missing = {name: lab.missing(CLAIMS[name][0](lab)) for name in names}
    with tqdm(total=len(set().union(*missing.values())) + len(names), desc="models and claims", disable=None) as bar:
        for name in names:
            plan, measure, about = CLAIMS[name]
            head = (f"**{name}**: {about}. Seeds 0 to {lab.seeds[-1]}, {lab.n_scenes} held-out scenes, {lab.default.ar_steps} AR + "
                    f"{lab.default.diffusion_steps} diffusion steps by default; {where(device)}.")
            said = lab.out / f"{name}.md"
            before = said.read_text("utf-8") if said.exists() else ""
            if args.command == "all" and before.startswith(head) and before.endswith(mark):
                tqdm.write(before + "\n")  # an interrupted `all` goes on after the claims that it finished
            else:
                for made, seed in missing[name]:
                    if not lab.complete(made, seed):  # no claim before it trained it
                        lab.train(made, seed)
                        bar.update()
                finding = measure(lab, plan(lab))
                text = f"{head} In brackets: 95% intervals (`mean_interval`, `share_interval`).\n\n{finding.text}\n\n{mark}"
                for picture, (series, *words) in finding.charts.items():
                    drawing.chart(lab.out / f"{picture}.png", series, *words)
                keys = list(dict.fromkeys(key for row in finding.rows for key in row))
                lines = io.StringIO()
                writer = csv.DictWriter(lines, keys, lineterminator="\n")
                writer.writeheader()
                writer.writerows(finding.rows)
                write(lab.out / f"{name}.csv", lambda file: file.write(lines.getvalue().encode()))
                write(said, lambda file: file.write(text.encode()))
                tqdm.write(text)
            bar.update()


# ---------------------------------------------------------------- command line

def positive(text):
    """argparse type: a whole number, 1 or more."""
    number = count(text)
    if not number:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def seeds(text):
    """argparse type: how many seeds; `T95` reaches as far."""
    number = positive(text)
    if number > len(T95) + 1:
        raise argparse.ArgumentTypeError(f"must be at most {len(T95) + 1}")
    return number


def parse(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    words = {"rules": "the leaderboard of decoding rules", "decode": "wall time of decoding", "training": "wall time of training steps",
             **{name: f"claim: {about}" for name, (_, _, about) in CLAIMS.items()}, "all": "all claims, in this order"}
    for name, about in words.items():
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        if name in ("rules", "decode", "training"):
            command.add_argument("--json", type=Path, metavar="F", help="write the figures there, too")
        if name in ("rules", "decode"):
            command.add_argument("--checkpoint", type=Path, default=SHIPPED, metavar="F", help="default: the weights that come with Mini-Dimple")
            command.add_argument("--ar-checkpoint", type=Path, default=SHIPPED.with_name("ar_phase.pt"), metavar="F", help="likewise")
        if name not in ("rules", "decode", "training"):
            command.add_argument("--out", type=Path, default=Path("out/claims"), metavar="DIR",
                                 help="tables, pictures and models (default: out/claims); what is there is used again")
            command.add_argument("--seeds", type=seeds, default=3, metavar="N", help="train with seeds 0 to N - 1 (default: 3)")
            command.add_argument("--quick", action="store_true", help="a few steps, one seed, a few scenes: shows that it runs, nothing else")
        if name == "rules":
            command.add_argument("--rule", action="append", metavar="RULE", help="a rule more: path/to/mine.py, maskgit:3, ... (repeatable)")
            command.add_argument("--look", default="prefilled", metavar="LOOK", help=f"{', '.join(LOOKS)}, or path/to/mine.py (default: prefilled)")
            command.add_argument("--length", type=positive, metavar="N", help="window, in tokens (default: the longest trained)")
            command.add_argument("--picture", type=Path, default=Path("out/rules.png"), metavar="F", help="default: out/rules.png")
        if name == "training":
            command.add_argument("--repeats", type=positive, default=30, metavar="N", help="steps timed in each phase (default: 30)")
            command.add_argument("--preset", choices=TRAINING, default="tiny", help="default: tiny")
            command.add_argument("--compile", action="store_true", help="torch.compile the model, as train.py --compile does")
        elif name == "decode":
            command.add_argument("--repeats", type=positive, default=60, metavar="N", help="captions timed at batch 1 (default: 60)")
            command.add_argument("--compile", action="store_true", help="torch.compile the passes of decoding")
        else:
            scenes = 500 if name == "rules" else 300
            command.add_argument("--scenes", type=positive, default=scenes, metavar="N", help=f"held-out scenes (default: {scenes})")
    return parser, parser.parse_args(argv)


@script
def main(argv=None):
    parser, args = parse(argv)
    try:
        with parser.reporting(ValueError, OSError, RuleError, NotFinite, torch.OutOfMemoryError):
            device = pick_device(args.device)
            if args.command in (*CLAIMS, "all"):
                return claims(args, device)
            if args.command == "rules" and args.picture.suffix.lower() != ".png":
                raise ValueError(f"--picture {args.picture}: must end in .png")
            for path in filter(None, (args.json, getattr(args, "picture", None))):  # before the measurement, not after
                path.parent.mkdir(parents=True, exist_ok=True)
            figures = {"rules": rules, "decode": decode_speed, "training": training_speed}[args.command](args, device)
            if args.json:
                args.json.write_text(json.dumps(figures, indent=1) + "\n")
    except KeyboardInterrupt:
        going_on = "; the same command goes on with what is trained" if args.command in (*CLAIMS, "all") else ""
        print(f"\n{parser.prog}: stopped{going_on}", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
