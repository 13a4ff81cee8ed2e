"""Train Mini-Dimple: autoregressive, then diffusion. `python train.py --help` lists the options.

Reads top to bottom: command line, the run (with its checkpoints), main."""
import argparse
import contextlib
import csv
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from data import PADDINGS, Batches, toy
from lab import drawing
from lab.checkpoint import load, read_state, save, write
from lab.evaluate import THRESHOLD, Floor, evaluate
from lab.shell import DEVICE, Parser, commit, count, pick_device, positive, script, seed, share
from lab.training import (HELD_OUT_SCENES, PRESETS, TRAINING, autocast, low_precision,
                          make_optimizers, phase_loss, prepare)
from lab.variants import PrefixMasked
from mini_dimple import WEIGHTINGS, Dimple, schedule

try:
    import fcntl
except ImportError:  # Windows: two runs into one folder are not told apart there
    fcntl = None

RECIPES = ("ar-then-diffusion", "diffusion", "ar")
SAVE_EVERY = 250  # steps between two writes of last.pt
LOG_EVERY = 10    # steps between two looks at the loss: each look waits for the device
FLOOR_EVERY = 100  # steps between two measurements of the loss above its floor
LAST_FORMAT = "mini-dimple run 5"
# AdamW's rate, Muon's is in proportion; above the floor: nats per token, by share masked
LOG_COLUMNS = ("step", "phase", "loss", "learning_rate", "images_per_s", "seconds", "above_floor",
               *(f"above_floor_{part}" for part in Floor.PARTS))
BAR = "{desc} {percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt} [{remaining} left{postfix}]"
FILES = ("mini_dimple.pt", "ar_phase.pt", "last.pt", "log.csv", "samples.png", "result.json")


# ---------------------------------------------------------------- command line

def parse(argv=None):
    """The parser and its arguments; options not given are absent, so that --resume can tell them
    from defaults."""
    parser = Parser(description=__doc__.splitlines()[0], argument_default=argparse.SUPPRESS)
    option, flag = parser.add_argument, dict(action="store_true")
    option("--out", type=Path, default=Path("out"), metavar="DIR",
           help="where everything is written (default: out)")
    option("--preset", choices=PRESETS, help="tiny: 2 CPU cores (default); small: one 8 GB GPU")
    option("--recipe", choices=RECIPES,
           help="default: ar-then-diffusion; the others get the same number of steps")
    option("--ar-steps", type=count, metavar="N",
           help="steps of phase 1 (default: 400; small: 2000)")
    option("--diffusion-steps", type=count, metavar="N",
           help="steps of phase 2 (default: 800; small: 6000)")
    option("--ar-phase", type=Path, metavar="F",
           help="take phase 1 from another run's ar_phase.pt instead of training it")
    option("--weighting", choices=WEIGHTINGS,
           help="of the diffusion loss (default: flat); mini_dimple.weigh explains them")
    option("--complementary", **flag,
           help="diffusion: each example twice, with a mask and its complement; half as many")
    option("--padding", choices=PADDINGS, help="diffusion: EOS up to a random window (default), "
           "or to the batch's longest response")
    option("--prefix-mask", **flag,
           help="diffusion: what precedes the last prompt token cannot see the response")
    option("--wording", choices=toy.WORDINGS, help="in how many ways the toy captions may tell an "
           "object, how much a picture leaves open (default: two)")
    option("--order", choices=toy.ORDERS, help="of the objects in a toy caption (default: reading; "
           "free is hard, and for tiny only)")
    option("--data", type=Path, metavar="DIR",
           help="your own pictures: image files and a metadata.jsonl")
    option("--holdout", type=share, metavar="F",
           help="share of your pictures held out (default: 0.1; 0 for none)")
    option("--examples", type=positive, metavar="N",
           help="toy pictures to train on (default: 20,000; small: 40,000)")
    option("--evaluate", type=count, metavar="N", help="held-out pictures captioned after each "
           "phase (default: 1000 toy scenes, or all of your own; 0 for none)")
    option("--keep", type=positive, nargs="+", metavar="STEP",
           help="keep the weights of these steps, too, as step_N.pt")
    option("--device", **DEVICE)
    option("--compile", **flag, help="torch.compile the training step: slow to start")
    option("--seed", type=seed, metavar="S", help="default: 0")
    option("--resume", **flag, default=False, help="go on from DIR/last.pt")
    option("--overwrite", **flag, default=False, help="replace what an earlier run left in DIR")
    return parser, parser.parse_args(argv)


def settings_from(args):
    """What decides a run's numbers, as a dict. Raises ValueError for options that contradict each
    other, for an --ar-phase that is none, or a device that is not there."""
    given = vars(args)
    preset, recipe = given.get("preset", "tiny"), given.get("recipe", "ar-then-diffusion")
    ar, diffusion = TRAINING[preset]["ar_steps"], TRAINING[preset]["diffusion_steps"]
    if "ar_phase" in given:
        origin = read_ar_phase(given["ar_phase"]).origin
        ar = origin["steps"]
        if given["ar_phase"].resolve().parent == args.out.resolve():
            raise ValueError(f"--ar-phase {given['ar_phase']}: is in --out, whose earlier run this "
                             "one replaces; choose another --out")
        if recipe != RECIPES[0]:
            raise ValueError(f"--ar-phase: the recipe {recipe!r} does not begin with it")
        if (given.get("ar_steps", ar), given.get("preset", origin["preset"])) != (
                ar, origin["preset"]):
            raise ValueError(f"--ar-phase {given['ar_phase']}: is of {ar} steps of the preset "
                             f"{origin['preset']}; do not ask for others")
        preset, diffusion = origin["preset"], TRAINING[origin["preset"]]["diffusion_steps"]
    defaults = {"ar-then-diffusion": (ar, diffusion), "diffusion": (0, ar + diffusion),
                "ar": (ar + diffusion, 0)}[recipe]
    steps = given.get("ar_steps", defaults[0]), given.get("diffusion_steps", defaults[1])
    if recipe == "diffusion" and steps[0]:
        raise ValueError("--ar-steps: the recipe 'diffusion' has no autoregressive phase; "
                         "use --recipe ar-then-diffusion")
    if recipe == "ar" and steps[1]:
        raise ValueError("--diffusion-steps: the recipe 'ar' has no diffusion phase; "
                         "use --recipe ar-then-diffusion")
    of_diffusion = dict(weighting="flat", complementary=False, padding="random", prefix_mask=False)
    for name in of_diffusion:
        if recipe == "ar" and name in given:
            raise ValueError(f"--{name.replace('_', '-')} is for the diffusion phase; "
                             "the recipe 'ar' has none")
    if not (steps[1] if "ar_phase" in given else sum(steps)):
        raise ValueError("--diffusion-steps 0, and no step of phase 1: nothing to train")
    if "holdout" in given and "data" not in given:
        raise ValueError("--holdout is for your own pictures: give --data too")
    for name in ("examples", "wording", "order"):
        if name in given and "data" in given:
            raise ValueError(f"--{name} is for the toy set: with --data your pictures are used")
    wording, order = given.get("wording", "two"), given.get("order", "reading")
    if order == "free" and preset != "tiny":
        raise ValueError(f"--order free is for the preset tiny, not for {preset}")
    for step in given.get("keep", ()):
        if step > sum(steps) or ("ar_phase" in given and step <= ar):
            raise ValueError(f"--keep {step}: this run has steps {ar * ('ar_phase' in given) + 1} "
                             f"to {sum(steps)}")
    path = lambda name: str(given[name].resolve()) if name in given else None
    return dict(
        preset=preset, recipe=recipe, ar_steps=steps[0], diffusion_steps=steps[1],
        **{name: given.get(name, default) for name, default in of_diffusion.items()},
        data=path("data"), holdout=given.get("holdout", 0.1), wording=wording, order=order,
        evaluate=given.get("evaluate", None if "data" in given else HELD_OUT_SCENES),
        examples=given.get("examples", TRAINING[preset]["examples"]),
        ar_phase=path("ar_phase"), keep=sorted(given.get("keep", ())), seed=given.get("seed", 0),
        device=pick_device(given.get("device", "auto")).type, compile=given.get("compile", False))


def read_ar_phase(path):
    """-> the Checkpoint of an --ar-phase, preset and steps known. Raises ValueError, OSError."""
    found = load(path)
    origin = found.origin
    if origin["phase"] != "ar" or origin.get("preset") not in PRESETS or "steps" not in origin:
        raise ValueError(f"--ar-phase {path}: its last phase was {origin['phase']!r}; needed are "
                         "weights that `python train.py` wrote as ar_phase.pt")
    return found


# ---------------------------------------------------------------- the run

class NotFinite(Exception):
    """The loss or the weights are no longer finite numbers."""


@contextlib.contextmanager
def taken(folder):
    """Inside, the folder is there, and this run's alone; after it, what was made of it goes again
    if nothing was written.

    Raises ValueError if another run has it. The lock ends with the process, however that ends."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) if fcntl else contextlib.nullcontext():
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                for path in made:
                    path.rmdir()


@contextlib.contextmanager
def locked(folder):
    """Inside, no other process has the folder. Raises ValueError if one has it now."""
    busy = ValueError(f"--out {folder}: another run is writing there; wait for it, or choose "
                      "another folder")
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
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def interruption():
    """-> a function: has Ctrl-C been pressed? Inside, the first only sets this, so that a step can
    be finished and saved; the second stops at once."""
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


def left_by_a_run(folder):
    """What an earlier run wrote there."""
    kept = (path for path in folder.glob("step_*.pt") if path.stem[len("step_"):].isdecimal())
    return [path for path in (*(folder / name for name in FILES), *kept) if path.exists()]


def read_last(path):
    """The state of an unfinished run. Raises ValueError if there is none, or if it cannot be
    read."""
    if not path.exists():
        raise ValueError(f"--resume: {path} does not exist: nothing to go on from; start without "
                         "--resume (with --overwrite if the folder is in use)")
    return read_state(path, LAST_FORMAT)


def resumed_settings(args, state, path):
    """The stored settings, and --data if the pictures have moved: `Run` compares what they are, not
    where. Raises ValueError if the command line asks for other settings, however spelt."""
    stored, asked = state["settings"], dict(vars(args))
    if "device" in asked:
        asked["device"] = pick_device(asked["device"]).type
    if "keep" in asked:
        asked["keep"] = sorted(asked["keep"])
    if "ar_phase" in asked:
        asked["ar_phase"] = str(asked["ar_phase"].resolve())
    if "data" in asked and stored["data"]:
        asked["data"] = stored["data"] = str(asked["data"].resolve())
    elif stored["data"] and not Path(stored["data"]).exists():
        raise ValueError(f"--resume: the pictures are no longer in {stored['data']}; say where "
                         "they are with --data")
    for name, value in stored.items():
        if name in asked and asked[name] != value:
            raise ValueError(f"--resume: --{name.replace('_', '-')} is {asked[name]} here, {value} "
                             f"in {path}; a run goes on with the settings it began with")
    return stored


class Run:
    """One training run: model, optimizers, and what is written to `out`."""

    def __init__(self, settings, out, device, state=None):
        """`state`: what `read_last` gave. Raises ValueError for bad data, or data that differ from
        the state's or the --ar-phase's."""
        self.settings, self.out, self.device = settings, out, device
        (self.train_split, self.test_split, self.tokenizer, config, origin,
         self.fingerprint) = prepare(settings)
        self.origin = dict(origin, commit=commit(), **{
            name: settings[name] for name in ("preset", "recipe", "seed", "prefix_mask")})
        torch.manual_seed(settings["seed"])
        kind = PrefixMasked if settings["prefix_mask"] else Dimple
        self.model = kind(config).to(device)
        self.forward = torch.compile(self.model) if settings["compile"] else self.model
        training = TRAINING[settings["preset"]]
        rates = training["muon_lr"], training["adamw_lr"]
        self.new_optimizers = lambda: make_optimizers(self.model, *rates)
        self.optimizers = self.new_optimizers()
        self.batches = Batches(self.train_split, self.tokenizer, config, training["batch_size"],
                               settings["seed"], device, settings["padding"])
        self.step, self.seconds, self.results, self.pending, self.saved = 0, {}, {}, [], None
        board = toy.of(self.origin)
        self.floor = None
        if board and settings["diffusion_steps"]:
            try:
                self.floor = Floor(board, config, self.tokenizer, device)
            except ValueError as error:  # a tokenizer of a few examples
                print(f"the loss above its floor is not measured: {error}")
        self.above_floor = {}  # as measured last
        if state:
            self.go_on(state)
        elif settings["ar_phase"]:
            self.begin_with(settings["ar_phase"])
        self.start_log()

    def go_on(self, state):
        """From what `save` wrote."""
        if state["fingerprint"] != self.fingerprint:
            raise ValueError("--resume: the data, or this code's model or recipe, is no longer "
                             "what the run began with")
        self.model.load_state_dict(state["weights"])
        for (optimizer, _), saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.results, self.saved, self.above_floor = (
            state[key] for key in ("step", "seconds", "results", "step", "above_floor"))

    def begin_with(self, path):
        """From another run's AR phase: what follows depends on its weights alone."""
        model, tokenizer, origin = read_ar_phase(path)
        boards = toy.of(origin), toy.of(self.origin)
        if None not in boards and boards[0] != boards[1]:
            raise ValueError(f"--ar-phase {path}: is of other captions than this run; give the "
                             "--wording and --order that it was trained with")
        if model.config != self.model.config or tokenizer.merges != self.tokenizer.merges:
            raise ValueError(f"--ar-phase {path}: is of other data or another model than this run; "
                             "give the --seed, --examples and --data that it was trained with")
        self.model.load_state_dict(model.state_dict())
        self.step, self.results["ar"] = origin["steps"], origin.get("figures", {})

    def start_log(self):
        """An empty log.csv, or on resuming the rows up to the checkpoint; other files of an earlier
        run go."""
        log, rows = self.out / "log.csv", []
        if self.saved:
            if log.exists():
                with open(log, newline="") as file:
                    rows = [row for row in csv.reader(file) if len(row) == len(LOG_COLUMNS)
                            and row[0].isdigit() and int(row[0]) <= self.step]
        else:
            for path in left_by_a_run(self.out):
                path.unlink()
        text = "".join(",".join(row) + "\n" for row in [LOG_COLUMNS, *rows])
        write(log, lambda file: file.write(text.encode()))

    def fit(self):
        """Both phases to their ends, each followed by its checkpoint and evaluation. Raises
        NotFinite."""
        ar_steps = self.settings["ar_steps"]
        total = ar_steps + self.settings["diffusion_steps"]
        for phase, start, end in (("ar", 0, ar_steps), ("diffusion", ar_steps, total)):
            if phase not in self.results and start < end:  # not done, and part of this recipe
                self.train(end)
                self.finish(phase)

    def train(self, until):
        """Train up to step `until`, which lies in the phase that the run is in. Raises NotFinite,
        and, at Ctrl-C, KeyboardInterrupt once the step is finished and saved."""
        ar_steps, diffusion_steps = self.settings["ar_steps"], self.settings["diffusion_steps"]
        options = self.settings["weighting"], self.settings["complementary"]
        if self.step in (0, ar_steps):  # each phase is a training run of its own, as in the paper
            self.optimizers = self.new_optimizers()
        generator = torch.Generator(self.device)
        self.model.train()
        bar = tqdm(total=ar_steps + diffusion_steps, initial=self.step, unit="step",
                   bar_format=BAR, leave=None)
        with bar as self.bar, interruption() as interrupted:
            self.clock = time.perf_counter()
            while self.step < until:
                phase, factor = schedule(self.step, ar_steps, diffusion_steps)
                for optimizer, peak in self.optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = peak * factor
                generator.manual_seed(self.settings["seed"] * 1_000_003 + self.step)
                batch = self.batches(self.step, phase)
                with autocast(self.device):
                    loss = phase_loss(self.forward, batch, phase, generator, *options)
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
                if self.step in self.settings["keep"]:
                    self.keep(f"step_{self.step}.pt", phase)
                if due:
                    self.save()
                if stop:
                    raise KeyboardInterrupt
            if interrupted():  # while the last step was being saved
                raise KeyboardInterrupt

    def log(self, phase):
        """Look at the losses since the last look (the device is waited for only here): check, log,
        show. Every FLOOR_EVERY steps of diffusion, and after the last, see how far they could
        fall."""
        losses = torch.stack([loss for _, loss, _ in self.pending]).tolist()
        now = time.perf_counter()
        rate = len(losses) * self.batches.batch_size / (now - self.clock)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.clock
        seconds, nothing = round(sum(self.seconds.values()), 3), [""] * (1 + len(Floor.PARTS))
        above = nothing
        if phase == "diffusion" and self.floor and (
                self.step % FLOOR_EVERY == 0 or self.step == sum(
                    self.settings[f"{name}_steps"] for name in ("ar", "diffusion"))):
            self.above_floor = self.floor(self.model.eval())
            self.model.train()
            above = [round(nats, 5) for nats in self.above_floor.values()]
            self.seconds["floor"] = self.seconds.get("floor", 0.0) + time.perf_counter() - now
        self.clock = time.perf_counter()
        with open(self.out / "log.csv", "a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            for (step, _, lr), loss in zip(self.pending, losses):
                if not math.isfinite(loss):
                    raise NotFinite(f"the loss is {loss} at step {step}")
                writer.writerow([step, phase, loss, lr, round(rate, 1), seconds,
                                 *(above if step == self.step else nothing)])
        self.bar.set_description_str(phase, refresh=False)
        self.bar.set_postfix_str(f"loss {losses[-1]:.3f}, lr {lr:.1e}, {rate:.0f} images/s")
        self.bar.update(len(losses))
        self.pending = []

    def check_weights(self):
        if not all(weight.isfinite().all() for weight in self.model.parameters()):
            raise NotFinite(f"a weight is not finite after step {self.step}")

    def save(self):
        """last.pt: everything needed to go on as if nothing had happened."""
        self.check_weights()
        state = dict(
            format=LAST_FORMAT, settings=self.settings, fingerprint=self.fingerprint,
            step=self.step, seconds=self.seconds, results=self.results,
            above_floor=self.above_floor,
            weights=self.model.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer, _ in self.optimizers])
        write(self.out / "last.pt", lambda file: torch.save(state, file))
        self.saved = self.step

    def keep(self, name, phase, **more):
        """A checkpoint of the weights as they are."""
        self.check_weights()
        origin = dict(self.origin, phase=phase, steps=self.step, **more)
        save(self.out / name, self.model, self.tokenizer, origin)

    def finish(self, phase):
        """Checkpoint and evaluation of a phase; after the last one, the result files."""
        last = phase == "diffusion" or not self.settings["diffusion_steps"]
        names = ["ar_phase.pt"] * (phase == "ar") + ["mini_dimple.pt"] * last
        for name in names:
            self.keep(name, phase)
        self.model.eval()
        figures, texts, right, n = {}, [], [], len(self.test_split.texts)
        if n:
            origin = dict(self.origin, phase=phase)
            start = time.perf_counter()
            figures, texts, right = evaluate(
                self.model, self.tokenizer, self.test_split, origin, self.device)
            figures["evaluation_seconds"] = round(time.perf_counter() - start, 1)
            for name in names:
                self.keep(name, phase, figures=figures)
            said = ", ".join(f"{name} {value:.4g}" for name, value in figures.items()
                             if not isinstance(value, dict))
            print(f"{phase}: {said}", flush=True)
        self.results[phase] = figures
        if last:
            if n:
                shown = self.test_split.images[:8].permute(0, 2, 3, 1).numpy()
                sheet = drawing.samples_sheet(map(Image.fromarray, shown), texts, right)
                drawing.save(self.out / "samples.png", sheet)
            self.write_result(phase, figures)
        self.save()

    def write_result(self, phase, figures):
        """result.json: figures, and what they are of."""
        quality, settings = "exact_match" if self.settings["data"] else "correct", self.settings
        cuda = self.device.type == "cuda"
        result = dict(
            **figures | dict(evaluation_seconds=round(sum(
                found.get("evaluation_seconds", 0.0) for found in self.results.values()), 1)),
            **{f"ar_{quality}": self.results.get("ar", {}).get(quality)},
            rule="greedy, left to right" if phase == "ar" else f"confident:{THRESHOLD}",
            **{"nats_above_floor": self.above_floor} if self.floor else {},
            evaluated=len(self.test_split.texts), steps=self.step,
            train_seconds=round(sum(self.seconds.values()), 1),
            floor_seconds=round(self.seconds.get("floor", 0.0), 1),
            ms_per_step={name: round(1000 * self.seconds[name] / settings[f"{name}_steps"], 1)
                         for name in ("ar", "diffusion") if name in self.seconds},
            device=torch.cuda.get_device_name() if cuda else self.device.type,
            threads=torch.get_num_threads(),
            **{key: settings[key] for key in ("recipe", "preset", "seed")})
        if cuda:
            result["peak_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2 ** 20)
        text = json.dumps(result, indent=1)
        write(self.out / "result.json", lambda file: file.write(text.encode()))


# ---------------------------------------------------------------- main

def prepare_run(args):
    """Command line -> (settings, state to resume from or None). Raises ValueError for what cannot
    be done."""
    last = args.out / "last.pt"
    if args.resume and args.overwrite:
        raise ValueError("--resume and --overwrite: choose one")
    if args.resume:
        state = read_last(last)
        return resumed_settings(args, state, last), state
    settings = settings_from(args)
    found = [path.name for path in left_by_a_run(args.out)]
    if found and not args.overwrite:
        going_on = "--resume goes on with it if unfinished, " if last.exists() else ""
        raise ValueError(f"--out {args.out}: holds {found[0]} of an earlier run; {going_on}"
                         "--overwrite replaces it, another --out keeps it")
    return settings, None


def start_line(run):
    """What is trained on what, in one line."""
    size = sum(p.numel() for p in run.model.parameters()) / 1e6
    pictures = run.train_split.images
    bf16 = low_precision(run.device) == torch.bfloat16
    dtype = "bf16" if bf16 else "float32"
    place = f"the CPU in {dtype} ({torch.get_num_threads()} threads)"
    if run.device.type == "mps":
        place = f"mps in {dtype}"
    if run.device.type == "cuda":
        place = f"{torch.cuda.get_device_name()} in {dtype}"
        place += "" if bf16 else ", as it does not compute bf16 natively"
    return (f"{run.settings['preset']}: {size:.2f} M parameters, {len(pictures):,} training "
            f"pictures ({pictures.nbytes / 1e6:,.0f} MB, kept on the device), on {place}, "
            f"into {run.out}")


def last_good(run, out):
    """What is safe after a run that has failed, in words."""
    last = out / "last.pt"
    if run is None:
        return f"{last} is as it was" if last.exists() else "nothing was written"
    if not run.saved:
        return "no checkpoint yet; start again with --overwrite"
    return f"the last good checkpoint is {last} (step {run.saved}); --resume goes on from it"


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
        words = " ".join(str(error).split())
        print(f"{parser.prog}: {words}; {last_good(run, args.out)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: stopped; {last_good(run, args.out)}", file=sys.stderr)
        raise SystemExit(130) from None
    shown = f"pictures with the model's captions: {args.out / 'samples.png'}; "
    shown = shown if (args.out / "samples.png").exists() else ""
    print(f"{shown}figures: {args.out / 'result.json'}")


if __name__ == "__main__":
    main()
