"""Measure Mini-Dimple: `python bench.py rules` compares decoding rules, `python bench.py decode` times decoding.

Every figure of a table comes out of one run, so that its rows can be compared. `python bench.py COMMAND --help`."""
import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from data import DESCRIBE, drawing, pad_prompts, toy
from mini_dimple import Config, Dimple, RuleError, decode, decode_ar, load
from rules import resolve
from sample import SHIPPED
from train import THRESHOLD, Parser, count, pick_device

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

    def __init__(self, model, tokenizer, n, device):
        self.board, self.tokenizer = toy.TOYS[model.config.trained_on], tokenizer
        self.split = toy.examples(self.board, n, 0, held_out=True, instruction=DESCRIBE)
        self.response_tokens = statistics.fmean(len(tokenizer.encode(text)) + 1 for text in self.split.texts)  # with one EOS
        self.images = self.split.images.to(device)
        self.prompts = pad_prompts(self.split.prompts, tokenizer, model.config.prompt_tokens).to(device)
        self.windows = torch.full((n, model.config.window), model.config.mask_id, device=device)

    def __getitem__(self, rows):
        return self.images[rows], self.prompts[rows], self.windows[rows]


# ---------------------------------------------------------------- rules: the leaderboard

FIXED = ("maskgit", "entropy", "margin", "left_to_right", "random_order")
RULES = ("maskgit:1", "maskgit:2", "maskgit:5", *(f"{name}:10" for name in FIXED),
         *(f"confident:{t}" for t in (0.3, 0.5, 0.7, 0.9, 0.99)), *(f"remask:{t}" for t in (0.3, 0.5)))


def grade_rule(decode_batch, scenes, batch=BATCH, alone=16):
    """Decode all scenes in batches, and the first `alone` of them one by one -> figures."""
    n, device = len(scenes.images), scenes.images.device
    texts, iterations, alone_s = [], 0, []
    torch.manual_seed(0)  # a rule may draw random numbers
    start = now(device)
    for i in range(0, n, batch):
        out = decode_batch(*scenes[i:i + batch])
        iterations += out.iterations.sum().item()
        texts += [scenes.tokenizer.decode(out.response(b)) for b in range(len(out.tokens))]
    batch_s = now(device) - start
    for i in range(min(alone, n)):
        start = now(device)
        decode_batch(*scenes[i:i + 1])
        alone_s.append(now(device) - start)
    grades = [toy.grade(text, scene, scenes.board) for text, scene in zip(texts, scenes.split.scenes)]
    right = sum(right for _, right in grades)
    return dict(right=right / n, interval=wilson(right, n), well_formed=sum(formed for formed, _ in grades) / n,
                iterations=iterations / n, tokens_per_iteration=scenes.response_tokens * n / iterations,
                ms_batch_1=1000 * statistics.median(alone_s), ms_batch_64=1000 * batch_s / n)


def pareto(rows):
    """Which rows no other row beats: none is at least as right in as few iterations, and better in one of the two."""
    better = lambda a, b: a["right"] >= b["right"] and a["iterations"] <= b["iterations"] and \
        (a["right"], a["iterations"]) != (b["right"], b["iterations"])
    return [not any(better(other, row) for other in rows) for row in rows]


def labels(rows):
    """rule -> its label in the picture: where marks lie almost on each other, one of them speaks for all."""
    texts, left = {}, sorted(rows, key=lambda row: (not row["yours"], not row["front"]))
    while left:
        first = left[0]
        same = [row for row in left if abs(row["iterations"] - first["iterations"]) < 0.4 and abs(row["right"] - first["right"]) < 0.015]
        left = [row for row in left if row not in same]
        texts |= {row["rule"]: "" for row in same} | {first["rule"]: first["rule"] + f" and {len(same) - 1} more" * (len(same) > 1)}
    return texts


def rules(args, device):
    mine = args.rule or []
    chosen = {name: resolve(name) for name in [*mine, *RULES]}  # yours first: its mistakes cost no wait
    model, tokenizer, ar_model = load_pair(args, device)
    scenes = Scenes(model, tokenizer, args.scenes, device)
    rows, start = [], time.perf_counter()
    for name, rule in tqdm(chosen.items(), desc="rules", disable=None):
        figures = grade_rule(lambda *batch: decode(model, *batch, rule), scenes)
        rows.append(dict(rule=name, yours=name in mine, **figures))
    for row, front in zip(rows, pareto(rows)):
        row["front"] = front
    rows.sort(key=lambda row: row["iterations"])
    baseline = grade_rule(lambda images, prompts, windows: decode_ar(ar_model, images, prompts, windows.shape[1]), scenes)
    rows.append(dict(rule="AR phase, greedy, KV cache", yours=False, front=False, **baseline))
    print(f"{args.scenes} held-out scenes, {args.checkpoint.name}, prefilling; {where(device)}; "
          f"{time.perf_counter() - start:.0f} s. Interval: 95%, Wilson's, over scenes. ● on the front: no rule is as right in fewer iterations. "
          "★ yours.\n")
    print(table(["rule", "", "fully right", "95% interval", "well formed", "iterations", "tokens per iteration", "ms per caption, batch 1",
                 "batch 64"],
                [[f"`{r['rule']}`", "●" * r["front"] + "★" * r["yours"], f"{r['right']:.1%}", "{:.1%} to {:.1%}".format(*r["interval"]),
                  f"{r['well_formed']:.1%}", f"{r['iterations']:.2f}", f"{r['tokens_per_iteration']:.2f}", f"{r['ms_batch_1']:.1f}",
                  f"{r['ms_batch_64']:.2f}"] for r in rows]))
    names = labels(rows[:-1])
    point = lambda row: (row["iterations"], 100 * row["right"], *(100 * end for end in row["interval"]), names[row["rule"]])
    groups = {"on the front": [r for r in rows[:-1] if r["front"] and not r["yours"]],
              "others": [r for r in rows[:-1] if not r["front"] and not r["yours"]], "yours": [r for r in rows if r["yours"]]}
    drawing.chart(args.picture, [drawing.Series(name, [point(r) for r in members], name == "on the front", name != "others")
                                 for name, members in groups.items() if members],
                  "iterations per caption", "fully right, %", "Decoding rules")
    print(f"\nthe front as a picture: {args.picture}")
    return rows


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
    decode(model, *batch, rule)
    model.prefix, model.score = clocked(model.prefix), clocked(model.score)
    start = now(device)
    for _ in range(repeats):
        decode(model, *batch, rule)
    whole = now(device) - start
    del model.prefix, model.score  # the class's own methods again
    return inside / whole


def captions_per_way(args, device):
    """Wall time per caption of each way to decode, batch 1 and 64 -> rows; and the share of it inside the model.

    Compiled, only batch 1: as finished examples leave a batch its shape changes, and each shape is compiled anew."""
    model, tokenizer, ar_model = load_pair(args, device)
    rule, one = resolve(f"confident:{THRESHOLD}"), resolve("maskgit:1")
    scenes, rows = Scenes(model, tokenizer, BATCH, device), []
    share = None if args.compile else share_in_model(model, scenes[:BATCH], rule, device)
    if args.compile:
        model.score, ar_model.transformer = compiled(model.score), torch.compile(ar_model.transformer, dynamic=True)
    for batch, repeats in ((1, args.repeats), (BATCH, max(3, args.repeats // 6)))[:1 if args.compile else 2]:
        at = lambda turn: scenes[turn * batch % BATCH:turn * batch % BATCH + batch]  # in each turn the same scenes for all
        seconds = timed({
            "greedy AR, KV cache": lambda turn: decode_ar(ar_model, *at(turn)[:2], model.config.window),
            "confident, prefilling": lambda turn: decode(model, *at(turn), rule),
            "confident, no prefilling": lambda turn: decode(model, *at(turn), rule, prefill=False),
            "one token per iteration, prefilling": lambda turn: decode(model, *at(turn), one)}, device, repeats)
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
            seconds = timed({"with": lambda turn: decode(model, *batch, four), "without": lambda turn: decode(model, *batch, four, prefill=False),
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


# ---------------------------------------------------------------- command line

def positive(text):
    """argparse type: a whole number, 1 or more."""
    number = count(text)
    if not number:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def parse(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, words in (("rules", "the leaderboard of decoding rules"), ("decode", "wall time of decoding")):
        command = commands.add_parser(name, help=words, description=words)
        command.add_argument("--checkpoint", type=Path, default=SHIPPED, metavar="F", help="default: the weights that come with Mini-Dimple")
        command.add_argument("--ar-checkpoint", type=Path, default=SHIPPED.with_name("ar_phase.pt"), metavar="F", help="likewise")
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        command.add_argument("--json", type=Path, metavar="F", help="write the figures there, too")
        if name == "rules":
            command.add_argument("--rule", action="append", metavar="RULE", help="a rule more: path/to/mine.py, maskgit:3, ... (repeatable)")
            command.add_argument("--scenes", type=positive, default=500, metavar="N", help="held-out scenes (default: 500)")
            command.add_argument("--picture", type=Path, default=Path("out/rules.png"), metavar="F", help="default: out/rules.png")
        else:
            command.add_argument("--repeats", type=positive, default=60, metavar="N", help="captions timed at batch 1 (default: 60)")
            command.add_argument("--compile", action="store_true", help="torch.compile the passes of decoding; batch 1 only")
    return parser, parser.parse_args(argv)


def main(argv=None):
    parser, args = parse(argv)
    sys.stdout.reconfigure(errors="replace")  # the table's marks may be more than this terminal can show
    with parser.reporting(ValueError, OSError, RuleError):
        if args.command == "rules" and args.picture.suffix.lower() != ".png":
            raise ValueError(f"--picture {args.picture}: must end in .png")
        for path in filter(None, (args.json, getattr(args, "picture", None))):  # before the measurement, not after
            path.parent.mkdir(parents=True, exist_ok=True)
        figures = {"rules": rules, "decode": decode_speed}[args.command](args, pick_device(args.device))
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
