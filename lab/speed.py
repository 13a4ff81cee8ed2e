"""`python -m lab speed decode | training`: wall time. The ways of one table are timed in turn."""
import math
import statistics

import torch
from torch.utils.flop_counter import FlopCounterMode

from data import Batches
from lab.board import load_weights
from lab.evaluate import BATCH, THRESHOLD, Scenes, decoded, now
from lab.results import measured, table_of, where, write_part
from lab.shell import reporting
from lab.training import autocast, low_precision, make_optimizers, prepare
from mini_dimple import Config, Dimple, ar_loss, decode_ar, diffusion_loss, full
from rules import resolve
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


def share_in_model(model, batch, rule, device, repeats=5):
    """Of the wall time of `decode`, the share spent inside the model's forward passes, vision
    encoder included."""
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
    model.prefix, model.logits = clocked(model.prefix), clocked(model.logits)
    start = now(device)
    for _ in range(repeats):
        decoded(model, batch, rule)
    whole = now(device) - start
    del model.prefix, model.logits  # the class's own methods again
    return inside / whole


def captions_per_way(weights, args, device):
    """Wall time per caption of each way to decode, batch 1 and 64 -> rows; and the share of it
    inside the model."""
    model, ar_model = weights.models.values()
    rule, one = resolve(f"confident:{THRESHOLD}"), resolve("maskgit:1")
    scenes, rows = Scenes(model.config, weights.tokenizer, BATCH, device, weights.board), []
    share = None if args.compile else share_in_model(model, scenes[:BATCH], rule, device)
    if args.compile:
        model.logits = compiled(model.logits)
        ar_model.transformer = torch.compile(ar_model.transformer, dynamic=True)
    for batch, repeats in ((1, args.repeats), (BATCH, max(3, args.repeats // 6))):
        def at(turn):  # in each turn the same scenes for all
            first = turn * batch % BATCH
            return scenes[first:first + batch]
        greedy = "greedy AR, KV cache"
        seconds = timed({
            greedy: lambda turn: decode_ar(ar_model, *at(turn)[:2], model.config.window),
            "confident, prefilling": lambda turn: decoded(model, at(turn), rule),
            "confident, no prefilling": lambda turn: decoded(model, at(turn), rule, full),
            "one token per iteration, prefilling": lambda turn: decoded(model, at(turn), one),
        }, device, repeats)
        rows += [dict(batch=batch, way=name, ms=1000 * s / batch,
                      speedup_over_ar=seconds[greedy] / s) for name, s in seconds.items()]
    return rows, share


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
    rows, share = captions_per_way(weights, args, device)
    text = f"{args.checkpoint.name} and {args.ar_checkpoint.name}; medians.\n\n" + table_of([
        {"batch": row["batch"], "way": row["way"], "ms per caption": f"{row['ms']:.2f}",
         "times as fast as greedy AR": f"{row['speedup_over_ar']:.2f}"} for row in rows])
    figures, part = dict(device=where(device), compile=args.compile, ways=rows), "speed decode"
    if args.compile:
        part += " compiled"
    else:
        sweep = prefill_sweep(device, max(3, args.repeats // 6))
        figures |= dict(share_in_model=share, prefill=sweep)
        text += (f"\n\nBatch {BATCH}, confident, prefilling: {share:.0%} of the wall time is in "
                 "the model's forward pass.\n\nPrefilling, batch 1, random weights of the default "
                 "size, 4 tokens per iteration:\n\n") + table_of([
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
