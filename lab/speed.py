"""`python -m lab speed decode | training`: wall time. The ways of one table are timed in turn."""
import math
import statistics
from collections import Counter
from contextlib import ExitStack
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from data import Batches
from lab.board import load_weights
from lab.evaluate import THRESHOLD, Scenes, decoded, now
from lab.results import measured, table_of, where, write_part
from lab.shell import reporting
from lab.trace import counting
from lab.training import autocast, low_precision, make_optimizers, prepare
from mini_dimple import Config, Dimple, Step, ar_loss, decode_ar, diffusion_loss, full
from rules import resolve, resolve_look
from train import parse, settings_from


def timed(ways, device, repeats):
    """name -> function, run in turns -> name -> median seconds. Everything once before, to warm
    up."""
    seconds = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = now(device)
            way(turn)
            if turn:
                seconds[name].append(now(device) - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


# ---------------------------------------------------------------- decoding

def compiled(logits_of):
    """`Dimple.logits` through torch.compile: static shapes, and CUDA graphs where there is CUDA."""
    fast = torch.compile(logits_of, dynamic=False, mode="reduce-overhead")

    def wrapper(*arguments, **options):
        logits, cache = fast(*arguments, **options)
        # the next replay of a graph overwrites its outputs
        return logits.clone(), [(k.clone(), v.clone()) for k, v in cache]
    return wrapper


def where_time_goes(model, batch, rule, look, device, repeats):
    """Of the wall time of `decoded`, the shares of the model (vision encoder, transformer, head),
    the look (what it does besides), the rule, Step (softmax, draw, commit) and the loop."""
    seconds, inner = Counter(), 0.0

    def clocked(name, function):
        def wrapper(*arguments, **options):
            nonlocal inner
            outer, inner, start = inner, 0.0, now(device)
            answer = function(*arguments, **options)
            spent = now(device) - start
            seconds[name] += spent - inner  # without what is clocked inside
            inner = outer + spent
            return answer
        return wrapper
    made = lambda *inputs: clocked("look", look(*inputs))
    whole = clocked("loop", lambda: decoded(model, batch, clocked("rule", rule), made))
    with ExitStack() as stack:
        for owner, method, name in ((Step, "__post_init__", "Step"), (Step, "commit", "Step"),
                                    (model, "prefix", "model"), (model, "transformer", "model"),
                                    (model.head, "forward", "model")):
            patched = mock.patch.object(owner, method, clocked(name, getattr(owner, method)))
            stack.enter_context(patched)
        whole()
        seconds.clear()
        for _ in range(repeats):
            whole()
    return {name: spent / sum(seconds.values()) for name, spent in seconds.items()}


RULES = (f"confident:{THRESHOLD}", "eb_sampler:0.5", "middle_out", "maskgit:1")
WAYS = ("full", "prefilled", "changed")  # looks
GREEDY_AR = "greedy AR, KV cache"


def captions_per_way(weights, args, device):
    """Each rule with each look, and greedy AR, timed in turns on the same scenes -> rows: passes,
    and of each batch size the positions computed and the wall time per caption."""
    model, ar_model = weights.models.values()
    rules = {name: resolve(name) for name in args.rule or RULES}
    looks = {name: resolve_look(name) for name in args.look or WAYS}
    scenes = Scenes(model.config, weights.tokenizer, max(args.batch), device, weights.board)
    ar = lambda rows: decode_ar(ar_model, *scenes[rows][:2], model.config.window)
    ways = {(GREEDY_AR, ""): (ar_model, ar)} | {
        (rule, look): (model, lambda rows, rule=rule, look=look: decoded(
            model, scenes[rows], rules[rule], looks[look]))
        for rule in rules for look in looks}
    found = {way: {"rule": way[0], "look": way[1]} for way in ways}
    for way, (of, work) in ways.items():  # before anything is compiled, which hides the calls
        out = work(torch.arange(len(scenes.images)))
        found[way]["passes"] = out.passes.double().mean().item()
        for batch in args.batch:
            with counting(of) as positions:
                for rows in torch.arange(min(16 * batch, len(scenes.images))).split(batch):
                    work(rows)
            captions = batch * math.ceil(min(16 * batch, len(scenes.images)) / batch)
            found[way][f"positions, batch {batch}"] = batch * sum(positions) / captions
    rule, look = next(iter(rules.values())), next(iter(looks.values()))
    shares = None if args.compile else {batch: where_time_goes(
        model, scenes[torch.arange(batch)], rule, look, device, max(3, args.repeats // batch))
        for batch in args.batch}
    if args.compile:
        model.logits = compiled(model.logits)
        for of in (model, ar_model):
            of.transformer = torch.compile(of.transformer, dynamic=True)
    for batch in args.batch:
        at = lambda turn: (turn * batch + torch.arange(batch)) % len(scenes.images)
        seconds = timed({way: lambda turn, work=work: work(at(turn))
                         for way, (_, work) in ways.items()},
                        device, args.repeats if batch == 1 else max(3, args.repeats // 12))
        for way, s in seconds.items():
            found[way] |= {f"ms, batch {batch}": 1000 * s / batch,
                           f"times AR, batch {batch}": seconds[GREEDY_AR, ""] / s}
    return list(found.values()), shares


SWEEP = tuple((visual, window) for visual in (9, 64, 256, 1024) for window in (48, 144))


def prefill_sweep(device, repeats):
    """Prefilling's wall-time ratio over visual tokens and window lengths, batch 1, random weights,
    4 tokens per iteration."""
    rows, four = [], resolve("left_to_right:4")
    for visual, window in SWEEP:
        torch.manual_seed(0)
        side = 16 * math.isqrt(visual)
        config = Config(vocab_size=320, eos_id=318, mask_id=319, image_px=side)
        model = Dimple(config).to(device).eval()
        images = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, device=device)
        prompt = torch.zeros(1, 3, dtype=torch.long, device=device)
        batch = images, prompt, torch.full((1, window), 319, device=device)
        with torch.no_grad():
            seconds = timed({"with": lambda turn: decoded(model, batch, four),
                             "without": lambda turn: decoded(model, batch, four, full),
                             "encoder": lambda turn: model.prefix(*batch[:2])}, device, repeats)
        rows.append(dict(visual_tokens=visual, window=window, iterations=window // 4,
                         ratio=seconds["without"] / seconds["with"],
                         **{f"ms_{name}": 1000 * s for name, s in seconds.items()}))
    return rows


def decode_speed(args, device, command):
    with reporting(ValueError, OSError):
        weights = load_weights(args, device, "trained", "ar")
        rows, shares = captions_per_way(weights, args, device)
    digits = lambda name: 0 if name.startswith("positions") else 2
    text = f"{args.checkpoint.name} and {args.ar_checkpoint.name}; per caption, medians.\n\n"
    text += table_of([{name: value if isinstance(value, str) else f"{value:.{digits(name)}f}"
                       for name, value in row.items()} for row in rows])
    figures, part = dict(device=where(device), compile=args.compile, ways=rows), "speed decode"
    if args.compile:
        part += " compiled"
    else:
        config, ar = weights.models["trained"].config, rows[0][f"positions, batch {args.batch[0]}"]
        visual = (config.image_px // config.patch_px // 2) ** 2
        first = visual + config.prompt_tokens + config.window
        sweep = prefill_sweep(device, max(3, args.repeats // 6))
        figures |= dict(shares=shares, prefill=sweep)
        text += (f"\n\nThe first pass computes {first} positions, {first / ar:.0%} of those that "
                 f"AR computes for a caption.\n\nWhere the time goes, {rows[1]['rule']} with look "
                 f"{rows[1]['look']}:\n\n") + table_of([
            {"batch": batch} | {name: f"{share:.0%}" for name, share in parts.items()}
            for batch, parts in shares.items()])
        text += ("\n\nPrefilling, batch 1, random weights of the default size, 4 tokens per "
                 "iteration:\n\n") + table_of([
            {name.replace("_", " "): value if isinstance(value, int) else f"{value:.2f}"
             for name, value in row.items()} for row in sweep])
    print(f"{where(device)}{', --compile' * args.compile}; {text}")
    if args.write:
        write_part(part, f"{measured(command, device)}\n\n{text}")
    return figures


# ---------------------------------------------------------------- training: a step, its parts

def matrix_rate(device, dtype, repeats=10, n=2048):
    """What the machine reaches in a matrix product (n, n) x (n, n), FLOP/s: the median."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in "ab")
    return 2 * n ** 3 / timed({"product": lambda turn: a @ b}, device, repeats)["product"]


def step_parts(phase, prepared, settings, args, device):
    """Median seconds of a step's parts, as training does it, and median FLOP of its forward and
    backward passes (on the CPU without attention's, which PyTorch does not count there)."""
    split, _, tokenizer, config, _ = prepared
    torch.manual_seed(0)
    model, generator = Dimple(config).to(device), torch.Generator(device)
    forward = torch.compile(model) if args.compile else model
    optimizers = make_optimizers(model, settings["muon_lr"], settings["adamw_lr"])
    batches = Batches(split, tokenizer, config, settings["batch_size"], 0, device)
    seconds, flop = {}, []

    def clocked(name, work):
        start = now(device)
        answer = work()
        seconds.setdefault(name, []).append(now(device) - start)
        return answer

    def gradient(batch, forward):
        with autocast(device):
            loss = (ar_loss(forward, *batch) if phase == "ar" else
                    diffusion_loss(forward, *batch, generator))
        loss.backward()

    def update():
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for step in range(args.repeats + 3):  # three to warm up
        batch = clocked("batch", lambda: batches(step, phase))
        clocked("forward and backward", lambda: gradient(batch, forward))
        clocked("optimizers", update)
    for step in range(3, args.repeats + 3):
        with FlopCounterMode(display=False) as counter:
            gradient(batches(step, phase), model)
        flop.append(counter.get_total_flops())
    parts = {name: statistics.median(times[3:]) for name, times in seconds.items()}
    return parts, statistics.median(flop)


def training_speed(args, device, command):
    words = ["--preset", args.preset, "--examples", "2000", "--evaluate", "0"]
    settings, _ = settings_from(parse(words)[1])
    prepared, size, rows = prepare(settings), settings["batch_size"], []
    for phase in ("ar", "diffusion"):
        parts, flop = step_parts(phase, prepared, settings, args, device)
        whole, rate = sum(parts.values()), matrix_rate(device, low_precision(device))
        rows.append(dict(
            phase=phase, ms_per_step=1000 * whole, images_per_s=size / whole,
            gflop_per_step=flop / 1e9, matrix_gflops=rate / 1e9,
            share_of_matrix_rate=flop / whole / rate,
            shares={part: seconds / whole for part, seconds in parts.items()}))
    small = lambda dtype: matrix_rate(device, dtype, n=256)  # emulated, bf16 takes long
    bf16 = small(torch.bfloat16) / small(torch.float32)
    dtype = str(low_precision(device)).removeprefix("torch.")
    text = (f"Preset {args.preset}{', --compile' * args.compile}, batches of {size}, in {dtype}; "
            f"medians over {args.repeats} steps. A matrix product in bf16 runs at {bf16:.2g} times "
            "float32's rate (256 x 256).\n\n") + table_of([{
                "phase": row["phase"], "ms per step": f"{row['ms_per_step']:.0f}",
                "images/s": f"{row['images_per_s']:.0f}",
                "GFLOP per step": f"{row['gflop_per_step']:.1f}",
                "machine's matrix rate, GFLOP/s": f"{row['matrix_gflops']:.0f}",
                "training reaches of it": f"{row['share_of_matrix_rate']:.0%}",
                **{part: f"{share:.0%}" for part, share in row["shares"].items()}}
                for row in rows])
    print(f"{where(device)}{', --compile' * args.compile}; {text}")
    if args.write:
        write_part("speed training", f"{measured(command, device)}\n\n{text}")
    return dict(device=where(device), preset=args.preset, compile=args.compile,
                bf16_over_float32=bf16, phases=rows)
