"""Train Mini-Dimple: autoregressive, then diffusion. `python train.py --help` lists the options; README.md explains them.

Reads top to bottom: command line, data, optimizers, evaluation, the run (with its checkpoints), main.
"""
import argparse
import contextlib
import csv
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import signal
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from data import PADDINGS, Batches, drawing, folder, pad_prompts, toy, write
from mini_dimple import (PRESETS, WEIGHTINGS, Config, Dimple, ar_loss, checkpoint, confident, decode, decode_ar,
                         diffusion_loss, full, prefilled, read_state, schedule)
from tokenizer import Tokenizer

RECIPES = ("ar-then-diffusion", "diffusion", "ar")
TRAINING = {  # what a preset needs besides its Config; learning rates are peaks, the same in both phases
    "tiny": dict(ar_steps=400, diffusion_steps=600, batch_size=64, examples=20_000, muon_lr=0.01, adamw_lr=8e-3),
    "small": dict(ar_steps=2000, diffusion_steps=6000, batch_size=64, examples=40_000, muon_lr=0.012, adamw_lr=5e-3),
}
THRESHOLD = 0.9         # of confident decoding, in evaluation and in sample.py
HELD_OUT_SCENES = 2000
EVAL_BATCH = 100
SAVE_EVERY = 250        # steps between two writes of last.pt
LOG_EVERY = 10          # steps between two looks at the loss: each look waits for the device
LAST_FORMAT = "mini-dimple run 3"
LOG_COLUMNS = ("step", "phase", "loss", "learning_rate", "images_per_s", "seconds")  # AdamW's rate; Muon's is in proportion
BAR = "{desc} {percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt} [{postfix}, {remaining} left]"
FILES = ("mini_dimple.pt", "ar_phase.pt", "last.pt", "log.csv", "samples.png", "result.json")


# ---------------------------------------------------------------- command line

class Parser(argparse.ArgumentParser):
    """Errors are one line on stderr and exit status 2."""

    def error(self, message):
        print(f"{self.prog}: error: {' '.join(str(message).split())}", file=sys.stderr)
        raise SystemExit(2)

    @contextlib.contextmanager
    def reporting(self, *kinds):
        """Inside, these exceptions are the user's to mend: reported by `error`, without a traceback."""
        try:
            yield
        except BrokenPipeError:  # an OSError, but nobody is left to read about it: `script` ends it
            raise
        except kinds as error:
            self.error(error)


def script(main):
    """Decorator of a script's `main(argv)`, for output that ends or is elsewhere.

    A terminal that cannot show a character gets a `?`; a stream that a notebook put in place of stdout is taken as it is;
    when the reader of a pipe has gone (`| head -1`), or at Ctrl-C, the script ends without a traceback."""
    @functools.wraps(main)
    def wrapper(argv=None):
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        try:
            try:
                main(argv)
            finally:
                sys.stdout.flush()  # here, not at the interpreter's exit, where nothing can catch its failure
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (sys.stdout, sys.stderr):  # so that what they still hold fails no second time
                with contextlib.suppress(io.UnsupportedOperation):  # a stream without a file
                    os.dup2(nowhere, stream.fileno())
            raise SystemExit(128 + signal.SIGPIPE) from None  # as a program that the signal ends
        except KeyboardInterrupt:
            print(f"\n{Path(sys.argv[0]).name}: stopped", file=sys.stderr)
            raise SystemExit(130) from None
    return wrapper


def count(text):
    """argparse type: a whole number, 0 or more."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text}: must be 0 or more")
    return number


def seed(text):
    """argparse type: a whole number from 0 to 2^32 - 1."""
    number = count(text)
    if number >= 2 ** 32:
        raise argparse.ArgumentTypeError(f"{text}: must be below 2^32")
    return number


def share(text):
    """argparse type: a fraction, at least 0 and below 1."""
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 0 and below 1")
    return number


def pick_device(name):
    """auto | cpu | cuda -> torch device. Raises ValueError for cuda without CUDA."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this PyTorch sees no CUDA device; use --device cpu, or install a CUDA build "
                         "(https://pytorch.org/get-started/locally)")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def parse(argv=None):
    """The parser and its arguments; options not given are absent, so that --resume can tell them from defaults."""
    parser = Parser(description=__doc__.splitlines()[0], argument_default=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where everything is written (default: out)")
    parser.add_argument("--preset", choices=PRESETS, help="tiny: 2 CPU cores (default); small: one 8 GB GPU")
    parser.add_argument("--recipe", choices=RECIPES, help="default: ar-then-diffusion; the others get the same number of steps")
    parser.add_argument("--ar-steps", type=count, metavar="N", help="steps of phase 1 (default: 400; small: 2000)")
    parser.add_argument("--diffusion-steps", type=count, metavar="N", help="steps of phase 2 (default: 600; small: 6000)")
    parser.add_argument("--weighting", choices=WEIGHTINGS, help="of the diffusion loss (default: flat); mini_dimple.weigh explains them")
    parser.add_argument("--complementary", action="store_true", help="diffusion: each example twice, with a mask and its complement; half as many")
    parser.add_argument("--padding", choices=PADDINGS, help="diffusion: EOS up to a random window (default), or to the batch's longest response")
    parser.add_argument("--prefix-mask", action="store_true", help="diffusion: what precedes the last prompt token cannot see the response")
    parser.add_argument("--data", type=Path, metavar="DIR", help="your own pictures: image files and a metadata.jsonl")
    parser.add_argument("--holdout", type=share, metavar="F", help="share of your pictures held out (default: 0.1; 0 for none)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: auto, which is cuda where there is one")
    parser.add_argument("--compile", action="store_true", help="torch.compile the training step: slow to start")
    parser.add_argument("--seed", type=seed, metavar="S", help="default: 0")
    parser.add_argument("--resume", action="store_true", default=False, help="go on from DIR/last.pt")
    parser.add_argument("--overwrite", action="store_true", default=False, help="replace what an earlier run left in DIR")
    return parser, parser.parse_args(argv)


def settings_from(args):
    """What decides a run's numbers, as a dict. Raises ValueError for options that contradict each other, or cuda without CUDA."""
    given = vars(args)
    preset, recipe = given.get("preset", "tiny"), given.get("recipe", "ar-then-diffusion")
    budget = TRAINING[preset]["ar_steps"], TRAINING[preset]["diffusion_steps"]
    defaults = {"ar-then-diffusion": budget, "diffusion": (0, sum(budget)), "ar": (sum(budget), 0)}[recipe]
    steps = given.get("ar_steps", defaults[0]), given.get("diffusion_steps", defaults[1])
    if recipe == "diffusion" and steps[0]:
        raise ValueError("--ar-steps: the recipe 'diffusion' has no autoregressive phase; use --recipe ar-then-diffusion")
    if recipe == "ar" and steps[1]:
        raise ValueError("--diffusion-steps: the recipe 'ar' has no diffusion phase; use --recipe ar-then-diffusion")
    of_diffusion = dict(weighting="flat", complementary=False, padding="random", prefix_mask=False)
    for name in of_diffusion:
        if recipe == "ar" and name in given:
            raise ValueError(f"--{name.replace('_', '-')} is for the diffusion phase; the recipe 'ar' has none")
    if not sum(steps):
        raise ValueError("--ar-steps 0 and --diffusion-steps 0: nothing to train")
    if "holdout" in given and "data" not in given:
        raise ValueError("--holdout is for your own pictures: give --data too")
    return dict(preset=preset, recipe=recipe, ar_steps=steps[0], diffusion_steps=steps[1],
                **{name: given.get(name, default) for name, default in of_diffusion.items()},
                data=str(given["data"].resolve()) if "data" in given else None, holdout=given.get("holdout", 0.1),
                seed=given.get("seed", 0), device=pick_device(given.get("device", "auto")).type, compile=given.get("compile", False))


# ---------------------------------------------------------------- data

def prepare(settings, examples=None):
    """-> train Split, evaluation Split, tokenizer, Config, and a fingerprint of all that the losses depend on.

    `examples` of the toy set instead of the preset's number. Raises ValueError for a bad --data folder."""
    preset, shape = settings["preset"], PRESETS[settings["preset"]]
    image_px, window = shape.get("image_px", Config.image_px), shape.get("window", Config.window)
    if settings["data"]:
        (train, train_lines), (test, test_lines) = folder.read(settings["data"], image_px, settings["holdout"])
        tokenizer = Tokenizer.train(train.texts + train.prompts)
        for split, lines in ((train, train_lines), (test, test_lines)):
            if split:
                folder.check_lengths(split, lines, tokenizer, window)
        if test is None:
            print("no picture is held out: the figures will be of the training pictures")
            test = train
        prompts = train.prompts + test.prompts
    else:
        train = toy.examples(toy.TOYS[preset], examples or TRAINING[preset]["examples"], settings["seed"], held_out=False)
        test = toy.examples(toy.TOYS[preset], HELD_OUT_SCENES, 0, held_out=True, instruction=toy.DESCRIBE)
        tokenizer = Tokenizer.train(train.texts + train.prompts)
        prompts = [toy.DESCRIBE, toy.COUNT]
    config = Config(tokenizer.vocab_size, tokenizer.eos_id, tokenizer.mask_id, **shape,
                    prompt_tokens=max(len(tokenizer.encode(prompt)) for prompt in prompts),
                    prompt=statistics.mode(train.prompts), trained_on="pictures" if settings["data"] else preset)
    digest = hashlib.sha256(repr((config, TRAINING[preset])).encode("utf-8", "surrogatepass"))
    for split in (train, test):
        digest.update(repr((split.prompts, split.texts)).encode("utf-8", "surrogatepass"))
        digest.update(split.images.numpy())
    return train, test, tokenizer, config, digest.hexdigest()


# ---------------------------------------------------------------- optimizers

def low_precision(device):
    """What matrices are multiplied in where that pays: bf16 on a CUDA device that computes it natively, else float32.

    Elsewhere it is emulated (a T4, most CPUs; on these a product takes a hundred times as long or more), or gains nothing
    here (CPUs that have it)."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def orthogonalise(matrices, dtype):
    """The orthogonal factor, roughly, of each matrix (n, rows, columns): five Newton-Schulz steps, computed in `dtype`.

    Singular values end between about 0.7 and 1.2. Coefficients: K. Jordan, https://kellerjordan.github.io/posts/muon."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(dtype)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is orthogonalised, for matrices. As `torch.optim.Muon` without weight decay, but that one
    computes in bf16 everywhere, and matrix by matrix; here the matrices of one shape are one stack."""

    def __init__(self, matrices, lr, momentum):
        shapes = {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        super().__init__([dict(params=alike) for alike in shapes.values()], dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        """Every matrix needs its gradient."""
        for group in self.param_groups:
            alike, momentum = group["params"], group["momentum"]
            gradient = torch.stack([matrix.grad for matrix in alike])  # (n, rows, columns)
            state = self.state[alike[0]]  # one average for all of the shape, kept with the first
            if not state:
                state["average"] = torch.zeros_like(gradient)
            average = state["average"].lerp_(gradient, 1 - momentum)
            update = orthogonalise(gradient.lerp(average, momentum), low_precision(gradient.device))  # Nesterov's look ahead
            rate = group["lr"] * max(1, gradient.shape[1] / gradient.shape[2]) ** 0.5
            torch._foreach_add_(alike, update.to(gradient.dtype).unbind(), alpha=-rate)


def make_optimizers(model, muon_lr, adamw_lr):
    """Muon for the matrices that turn features into features, AdamW for the rest (norms, positions, token embedding
    and head); no weight decay. [(optimizer, peak lr)]"""
    matrices = [name for name, p in model.named_parameters() if p.dim() == 2 and name.endswith(".weight")
                and name.split(".")[0] in ("vit", "projector", "blocks")]
    muon = [p for name, p in model.named_parameters() if name in matrices]
    rest = [p for name, p in model.named_parameters() if name not in matrices]
    return [(Muon(muon, muon_lr, momentum=0.9), muon_lr),
            (torch.optim.AdamW(rest, lr=adamw_lr, weight_decay=0.0, fused=True), adamw_lr)]


def autocast(device):
    """bf16 where `low_precision` says so; float32 elsewhere."""
    dtype = low_precision(device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


# ---------------------------------------------------------------- evaluation

def caption_all(model, tokenizer, split, prompts, greedy_ar, look=prefilled):
    """Decode every picture of the split -> texts, mean iterations, seconds. Confident decoding, or greedy AR."""
    device, config = next(model.parameters()).device, model.config
    ids = pad_prompts(prompts, tokenizer, config.prompt_tokens)
    texts, iterations, start = [], 0, time.perf_counter()
    for i in tqdm(range(0, len(ids), EVAL_BATCH), desc="evaluating", leave=False, disable=None):
        images, prompt = split.images[i:i + EVAL_BATCH].to(device), ids[i:i + EVAL_BATCH].to(device)
        if greedy_ar:
            out = decode_ar(model, images, prompt, config.window)
        else:
            window = torch.full((len(prompt), config.window), config.mask_id, device=device)
            out = decode(look(model, images, prompt), window, config, confident(THRESHOLD))
        texts += [tokenizer.decode(out.response(b)) for b in range(len(prompt))]
        iterations += out.iterations.sum().item()
    return texts, iterations / len(ids), time.perf_counter() - start


def evaluate(model, tokenizer, split, phase):
    """-> figures of the phase just trained (dict), the captions, which are right. AR weights decode left to right."""
    greedy = phase == "ar"
    texts, iterations, seconds = caption_all(model, tokenizer, split, split.prompts, greedy)
    figures = dict(iterations=iterations, response_tokens=statistics.fmean(len(tokenizer.encode(t)) + 1 for t in split.texts))
    if split.scenes is None:
        right = [text == wanted for text, wanted in zip(texts, split.texts)]
        return dict(exact_match=statistics.fmean(right), loss=mean_loss(model, tokenizer, split, phase), **figures), texts, right
    board = toy.TOYS[model.config.trained_on]
    well_formed, right = zip(*(toy.grade(text, scene, board) for text, scene in zip(texts, split.scenes)))
    counts, _, _ = caption_all(model, tokenizer, split, [toy.COUNT] * len(texts), greedy)
    figures = dict(correct=statistics.fmean(right), well_formed=statistics.fmean(well_formed), **figures,
                   count_correct=statistics.fmean(text == toy.count_answer(scene) for text, scene in zip(counts, split.scenes)))
    if not greedy:
        plain, _, plain_seconds = caption_all(model, tokenizer, split, split.prompts, greedy, full)
        figures["correct_without_prefill"] = statistics.fmean(toy.grade(t, s, board)[1] for t, s in zip(plain, split.scenes))
        figures["prefill_speedup"] = plain_seconds / seconds
    return figures, texts, right


@torch.no_grad()
def mean_loss(model, tokenizer, split, phase):
    """The phase's loss over a split, each example once: the mean over examples, nats per token."""
    device = next(model.parameters()).device
    batches = Batches(split, tokenizer, model.config, 1, 0, device)
    generator = torch.Generator(device).manual_seed(0)
    return statistics.fmean(phase_loss(model, batches(i, phase), phase, generator).item() for i in range(len(split.texts)))


# ---------------------------------------------------------------- the run

class NotFinite(Exception):
    """The loss or the weights are no longer finite numbers."""


@contextlib.contextmanager
def taken(folder):
    """Inside, the folder is there, and this run's alone; after it, what was made of it goes again if nothing was written.

    Raises ValueError if another run has it. The lock ends with the process, however that ends."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    busy = ValueError(f"--out {folder}: another run is writing there; wait for it, or choose another folder")
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:
            pass  # a file system without locks
        if not folder.exists() or not os.path.samestat(os.fstat(handle), os.stat(folder)):
            raise busy  # its run has just ended, and took it away before we had the lock
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                for path in made:
                    path.rmdir()
    finally:
        os.close(handle)


@contextlib.contextmanager
def interruption():
    """-> a function: has Ctrl-C been pressed? Inside, the first only sets this, so that a step can be finished and saved;
    the second stops at once."""
    pressed = []

    def handler(*_):
        pressed.append(True)
        signal.signal(signal.SIGINT, before)
    try:
        before = signal.signal(signal.SIGINT, handler)
    except ValueError:  # not in the main thread: Ctrl-C goes elsewhere
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def phase_loss(model, batch, phase, generator, weighting="flat", complementary=False):
    """The loss of a batch (images, prompt, response) in a phase: a scalar, nats per token. The options are `diffusion_loss`'s."""
    if phase == "ar":
        return ar_loss(model, *batch)
    return diffusion_loss(model, *batch, weighting, complementary, generator)


def read_last(path):
    """The state of an unfinished run. Raises ValueError if there is none, or if it cannot be read."""
    if not path.exists():
        raise ValueError(f"--resume: {path} does not exist: nothing to go on from; start without --resume "
                         "(with --overwrite if the folder is in use)")
    return read_state(path, LAST_FORMAT)


def resumed_settings(args, state, path):
    """The stored settings, and --data if the pictures have moved: `Run` compares what they are, not where.

    Raises ValueError if the command line asks for other settings, however spelt."""
    stored, asked = state["settings"], dict(vars(args))
    if "device" in asked:
        asked["device"] = pick_device(asked["device"]).type
    if "data" in asked and stored["data"]:
        asked["data"] = stored["data"] = str(asked["data"].resolve())
    elif stored["data"] and not Path(stored["data"]).exists():
        raise ValueError(f"--resume: the pictures are no longer in {stored['data']}; say where they are with --data")
    for name, value in stored.items():
        if name in asked and asked[name] != value:
            raise ValueError(f"--resume: --{name.replace('_', '-')} is {asked[name]} here, {value} in {path}; "
                             "a run goes on with the settings it began with")
    return stored


class Run:
    """One training run: model, optimizers, and what is written to `out`."""

    def __init__(self, settings, out, device, state=None, prepared=None):
        """`state`: what `read_last` gave; `prepared`: what `prepare` gave, for runs that share it. Raises ValueError for bad
        data, or data that differs from the state's."""
        self.settings, self.out, self.device = settings, out, device
        self.train_split, self.test_split, self.tokenizer, config, self.fingerprint = prepared or prepare(settings)
        torch.manual_seed(settings["seed"])
        self.model = Dimple(replace(config, prefix_mask=settings["prefix_mask"])).to(device)
        self.forward = torch.compile(self.model) if settings["compile"] else self.model
        training = TRAINING[settings["preset"]]
        self.new_optimizers = lambda: make_optimizers(self.model, training["muon_lr"], training["adamw_lr"])
        self.optimizers = self.new_optimizers()
        self.batches = Batches(self.train_split, self.tokenizer, config, training["batch_size"], settings["seed"], device, settings["padding"])
        self.step, self.seconds, self.results, self.pending, self.saved = 0, {}, {}, [], None
        if state:
            if state["fingerprint"] != self.fingerprint:
                raise ValueError("--resume: the data, or this code's model or recipe, is no longer what the run began with")
            self.model.load_state_dict(state["weights"])
            for (optimizer, _), saved in zip(self.optimizers, state["optimizers"]):
                optimizer.load_state_dict(saved)
            self.step, self.seconds, self.results, self.saved = (state[k] for k in ("step", "seconds", "results", "step"))
        self.start_log()

    def start_log(self):
        """An empty log.csv, or on resuming the rows up to the checkpoint; other files of an earlier run go."""
        log, rows = self.out / "log.csv", []
        if self.step:
            if log.exists():
                with open(log, newline="") as file:
                    rows = [row for row in csv.reader(file)
                            if len(row) == len(LOG_COLUMNS) and row[0].isdigit() and int(row[0]) <= self.step]
        else:
            for name in FILES:
                (self.out / name).unlink(missing_ok=True)
        write(log, lambda file: file.write("".join(",".join(row) + "\n" for row in [LOG_COLUMNS, *rows]).encode()))

    def fit(self):
        """Both phases to their ends, each followed by its checkpoint and evaluation. Raises NotFinite."""
        ar_steps, total = self.settings["ar_steps"], self.settings["ar_steps"] + self.settings["diffusion_steps"]
        for phase, start, end in (("ar", 0, ar_steps), ("diffusion", ar_steps, total)):
            if phase not in self.results and start < end:  # not done before, and part of this recipe
                self.train(end)
                self.finish(phase)

    def train(self, until):
        """Train up to step `until`, which lies in the phase that the run is in. Raises NotFinite, and, at Ctrl-C,
        KeyboardInterrupt once the step is finished and saved."""
        ar_steps, diffusion_steps = self.settings["ar_steps"], self.settings["diffusion_steps"]
        if self.step in (0, ar_steps):  # each phase is a training run of its own, as in the paper
            self.optimizers = self.new_optimizers()
        generator = torch.Generator(self.device)
        self.model.train()
        bar = tqdm(total=ar_steps + diffusion_steps, initial=self.step, unit="step", bar_format=BAR, leave=None)
        with bar as self.bar, interruption() as interrupted:
            self.clock = time.perf_counter()
            while self.step < until:
                phase, factor = schedule(self.step, ar_steps, diffusion_steps)
                for optimizer, peak in self.optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = peak * factor
                generator.manual_seed(self.settings["seed"] * 1_000_003 + self.step)
                batch = self.batches(self.step, phase)
                if phase == "diffusion" and self.settings["complementary"]:
                    batch = [rows[:(len(rows) + 1) // 2] for rows in batch]  # each enters twice: a step costs what it did
                with autocast(self.device):
                    loss = phase_loss(self.forward, batch, phase, generator,
                                      self.settings["weighting"], self.settings["complementary"])
                loss.backward()
                for optimizer, _ in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                self.step += 1
                self.pending.append((self.step, loss.detach(), peak * factor))
                stop = interrupted()
                due = self.step % SAVE_EVERY == 0 or self.step == until or stop
                if due or self.step % LOG_EVERY == 0:
                    self.log(phase)
                if due:
                    self.save()
                if stop:
                    raise KeyboardInterrupt
            if interrupted():  # while the last step was being saved
                raise KeyboardInterrupt

    def log(self, phase):
        """Look at the losses since the last look (the device is waited for only here): check, log, show."""
        losses = torch.stack([loss for _, loss, _ in self.pending]).tolist()
        now = time.perf_counter()
        rate = len(losses) * self.batches.batch_size / (now - self.clock)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.clock
        self.clock = now
        with open(self.out / "log.csv", "a", newline="") as file:
            for (step, _, lr), loss in zip(self.pending, losses):
                if not math.isfinite(loss):
                    raise NotFinite(f"the loss is {loss} at step {step}")
                csv.writer(file, lineterminator="\n").writerow([step, phase, loss, lr, round(rate, 1), round(sum(self.seconds.values()), 3)])
        self.bar.set_description_str(phase, refresh=False)
        self.bar.set_postfix_str(f"loss {losses[-1]:.3f}, lr {lr:.1e}, {rate:.0f} images/s")
        self.bar.update(len(losses))
        self.pending = []

    def save(self):
        """last.pt: everything needed to go on as if nothing had happened."""
        if not all(weight.isfinite().all() for weight in self.model.parameters()):
            raise NotFinite(f"a weight is not finite after step {self.step}")
        state = dict(format=LAST_FORMAT, settings=self.settings, fingerprint=self.fingerprint, step=self.step,
                     seconds=self.seconds, results=self.results, weights=self.model.state_dict(),
                     optimizers=[optimizer.state_dict() for optimizer, _ in self.optimizers])
        write(self.out / "last.pt", lambda file: torch.save(state, file))
        self.saved = self.step

    def finish(self, phase):
        """Checkpoint and evaluation of a phase; after the last one, the result files."""
        last = phase == "diffusion" or not self.settings["diffusion_steps"]
        self.model.config.phase = phase
        for name in ["ar_phase.pt"] * (phase == "ar") + ["mini_dimple.pt"] * last:
            write(self.out / name, lambda file: torch.save(checkpoint(self.model, self.tokenizer), file))
        self.model.eval()
        figures, texts, right = evaluate(self.model, self.tokenizer, self.test_split, phase)
        self.results[phase] = figures
        print(f"{phase}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)
        if not last:
            return self.save()
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in self.test_split.images[:8]]
        drawing.save(self.out / "samples.png", drawing.samples_sheet(pictures, texts, right))
        quality = "correct" if "correct" in figures else "exact_match"
        result = dict(
            **figures, **{f"ar_{quality}": self.results["ar"][quality] if "ar" in self.results else None},
            rule="greedy, left to right" if phase == "ar" else f"confident:{THRESHOLD}",
            train_seconds=round(sum(self.seconds.values()), 1), steps=self.step,
            ms_per_step={name: round(1000 * seconds / self.settings[f"{name}_steps"], 1) for name, seconds in self.seconds.items()},
            device=torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu", threads=torch.get_num_threads(),
            **{key: self.settings[key] for key in ("recipe", "preset", "seed")})
        if self.device.type == "cuda":
            result["peak_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2 ** 20)
        write(self.out / "result.json", lambda file: file.write(json.dumps(result, indent=1).encode()))
        self.save()


# ---------------------------------------------------------------- main

def prepare_run(args):
    """Command line -> (settings, state to resume from or None). Raises ValueError for what cannot be done."""
    last = args.out / "last.pt"
    if args.resume and args.overwrite:
        raise ValueError("--resume and --overwrite: choose one")
    if args.resume:
        state = read_last(last)
        return resumed_settings(args, state, last), state
    settings = settings_from(args)
    found = [name for name in FILES if (args.out / name).exists()]
    if found and not args.overwrite:
        going_on = "--resume goes on with it if unfinished, " if last.exists() else ""
        raise ValueError(f"--out {args.out}: holds {found[0]} of an earlier run; {going_on}--overwrite replaces it, "
                         "another --out keeps it")
    return settings, None


def start_line(run):
    """What is trained on what, in one line."""
    size, pictures = sum(p.numel() for p in run.model.parameters()) / 1e6, run.train_split.images
    dtype = "bf16" if low_precision(run.device) == torch.bfloat16 else "float32"
    if run.device.type == "cuda":
        place = torch.cuda.get_device_name() + f" in {dtype}" + ", as it does not compute bf16 natively" * (dtype == "float32")
    else:
        place = f"the CPU in {dtype} ({torch.get_num_threads()} threads)"
    return (f"{run.settings['preset']}: {size:.2f} M parameters, {len(pictures):,} training pictures ({pictures.nbytes / 1e6:,.0f} MB, "
            f"kept on the device), on {place}, into {run.out}")


def last_good(run, out):
    """What is safe after a run that has failed, in words."""
    if run is None:
        return f"{out / 'last.pt'} is as it was" if (out / "last.pt").exists() else "nothing was written"
    if not run.saved:
        return "no checkpoint yet; start again with --overwrite"
    return f"the last good checkpoint is {out / 'last.pt'} (step {run.saved}); --resume goes on from it"


@script
def main(argv=None):
    parser, args = parse(argv)
    run = None
    try:
        with contextlib.ExitStack() as held:
            with parser.reporting(ValueError, OSError):
                held.enter_context(taken(args.out))  # before the data, which take a while
                settings, state = prepare_run(args)
                device = pick_device(settings["device"])
                if state and (args.out / "result.json").exists():
                    print(f"{args.out} is finished: nothing to resume")
                    return
                run = Run(settings, args.out, device, state)
            print(start_line(run), flush=True)
            try:
                run.fit()
            except BrokenPipeError:
                if run.step != (run.saved or 0):
                    run.save()
                raise
    except BrokenPipeError:
        raise
    except (NotFinite, OSError, torch.OutOfMemoryError) as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}; {last_good(run, args.out)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: stopped; {last_good(run, args.out)}", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"pictures with the model's captions: {args.out / 'samples.png'}; figures: {args.out / 'result.json'}")


if __name__ == "__main__":
    main()
