"""What a training run writes, and how it stops:

    last.pt         every 100 steps, at the end of a phase, at Ctrl-C and SIGTERM: weights,
                    optimizers and step, for --resume
    log.csv         every 10 steps
    ar_phase.pt     at the end of phase 1: the weights
    mini_dimple.pt  at the end of the last phase: the weights; with samples.png and result.json
    step_N.pt       after step N of --keep: the weights
"""
import contextlib
import csv
import math
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from data import toy
from lab.checkpoint import load, save, write
from lab.evaluate import THRESHOLD, Floor
from lab.training import device_name
from mini_dimple import Dimple

SAVE_EVERY = 100   # steps between two writes of last.pt: what kill -9 can cost
LOG_EVERY = 10     # steps between two looks at the loss: each look waits for the device
FLOOR_EVERY = 100  # steps between two measurements of the loss above its floor
FORMAT = "mini-dimple run 6"
FILES = ("mini_dimple.pt", "ar_phase.pt", "last.pt", "log.csv", "samples.png", "result.json")
# AdamW's rate, Muon's is in proportion; above the floor: nats per token, by share masked
LOG_COLUMNS = ("step", "phase", "loss", "learning_rate", "images_per_s", "seconds", "above_floor",
               *(f"above_floor_{part}" for part in Floor.PARTS))


def written_in(out):
    """The files in the folder that training would write."""
    kept = [path for path in out.glob("step_*.pt") if path.stem.removeprefix("step_").isdecimal()]
    return [path for path in (out / name for name in FILES) if path.exists()] + kept


def refuse_to_replace(args):
    """Raises ValueError where a new run would write over what is not its own."""
    out, found = args.out.resolve(), written_in(args.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {args.out}: is a file; choose a folder")
    if args.data and Path(args.data).resolve() == out:
        raise ValueError(f"--out {args.out}: is the folder of --data; choose another")
    if args.ar_phase and Path(args.ar_phase).resolve().parent == out:
        raise ValueError(f"--out {args.out}: holds the --ar-phase; choose another")
    if found and not args.overwrite:
        going_on = "--resume goes on with an unfinished run, " * (args.out / "last.pt").exists()
        raise ValueError(f"--out {args.out}: holds a file of this name: {found[0].name}; "
                         f"{going_on}--overwrite replaces it, another --out keeps it")


def read_ar_phase(path, data):
    """The file of --ar-phase -> the settings that it decides, and the state to begin with, as of
    `Run.save`. Raises ValueError, OSError."""
    model, tokenizer, origin = load(path)
    if origin["phase"] != "ar":
        raise ValueError(f"--ar-phase {path}: its last phase was {origin['phase']!r}; needed are "
                         "weights that `python train.py` wrote as ar_phase.pt")
    if origin["trained_on"] == "pictures" and not data:
        raise ValueError(f"--ar-phase {path}: was trained on your own pictures; say where they are "
                         "with --data")
    decided = dict(preset=origin["preset"], ar_steps=origin["steps"], config=asdict(model.config),
                   merges=tokenizer.merges)
    if board := toy.of(origin):
        decided |= dict(wording=board.wording, order=board.order)
    return decided, dict(step=origin["steps"], saved=0, seconds={}, above_floor={}, optimizers=[],
                         results={"ar": origin.get("figures", {})}, weights=model.state_dict())


class Ended(Exception):
    """The run ends here: why, in one line, and the program's exit status."""

    def __init__(self, why, status=1):
        super().__init__(why)
        self.status = status


@dataclass
class Run:
    """A training run, as far as it has come."""
    settings: dict
    out: Path
    device: torch.device
    model: Dimple
    optimizers: list          # (optimizer, peak learning rate)
    tokenizer: object
    origin: dict
    floor: Floor              # None where it is not known
    batch_size: int
    step: int = 0
    saved: int = 0            # the step of last.pt; 0: there is none
    seconds: dict = field(default_factory=dict)      # of each phase, and of "floor"
    results: dict = field(default_factory=dict)      # of each phase that is evaluated: its figures
    above_floor: dict = field(default_factory=dict)  # as measured last

    def __post_init__(self):
        self.total = self.settings["ar_steps"] + self.settings["diffusion_steps"]

    def go_on(self, state):
        """From what `save` wrote, or from an --ar-phase."""
        self.model.load_state_dict(state["weights"])
        for (optimizer, _), saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        for name in ("step", "saved", "seconds", "results", "above_floor"):
            setattr(self, name, state[name])

    @contextlib.contextmanager
    def kept(self):
        """Inside, the folder has a log that ends at this step, and the first Ctrl-C or SIGTERM ends
        the run once a step is finished and saved. Raises Ended."""
        self.start_log()
        self.pending, self.bar, self.signal, self.clock = [], None, 0, time.perf_counter()
        before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

        def stop(one, _):
            signal.signal(one, before[one])  # the second one ends at once
            self.signal = one
            if self.bar is None:  # in an evaluation: all steps are saved
                raise self.stopped()
        for one in before:
            if before[one] != signal.SIG_IGN:  # as it is under nohup
                signal.signal(one, stop)
        try:
            yield
        finally:
            for one in before:
                signal.signal(one, before[one])
            if self.bar:
                self.bar.close()

    def stopped(self):
        return Ended(f"stopped; {self.last_good()}", 128 + self.signal)

    def last_good(self):
        """What is safe, in words."""
        if not self.saved:
            return "there is no checkpoint yet; start again with --overwrite"
        return (f"the last good checkpoint is {self.out / 'last.pt'} (step {self.saved}); "
                f"python train.py --resume --out {self.out} goes on from it")

    @contextlib.contextmanager
    def writing(self):
        """Inside, an OSError is of the run's files: a full disk, say."""
        try:
            yield
        except OSError as error:
            raise Ended(f"{error}; {self.last_good()}") from error

    def start_log(self):
        """An empty log.csv, or the rows up to the checkpoint; a new run's files replace others."""
        log, rows = self.out / "log.csv", []
        with self.writing():
            self.out.mkdir(parents=True, exist_ok=True)
            if not self.saved:
                for path in written_in(self.out):
                    path.unlink()
            elif log.exists():
                with open(log, newline="") as file:
                    rows = [row for row in csv.reader(file) if len(row) == len(LOG_COLUMNS)
                            and row[0].isdigit() and int(row[0]) <= self.step]
            text = "".join(",".join(row) + "\n" for row in [LOG_COLUMNS, *rows])
            write(log, lambda file: file.write(text.encode()))

    def after_step(self, phase, loss, rate):
        """To be called after each step: logs, saves, and ends the run where a signal came."""
        self.step += 1
        self.pending.append((self.step, loss.detach(), rate))
        if self.bar is None:
            self.bar = tqdm(total=self.total, initial=self.step - 1, unit="step", desc=phase)
        signalled, end = self.signal, self.step in (self.settings["ar_steps"], self.total)
        save_now = signalled or end or self.step % SAVE_EVERY == 0
        if save_now or self.step % LOG_EVERY == 0:
            self.log(phase, end)
        if self.step in self.settings["keep"]:
            self.checkpoint(f"step_{self.step}.pt", phase)
        if save_now:
            self.save()
        if end:
            self.bar.close()
            self.bar = None
        if signalled or end and self.signal:  # the signal may have come while the end was saved
            raise self.stopped()

    def log(self, phase, end):
        """Look at the losses since the last look: check, log, show. The device is waited for only
        here. At times, see how far the loss is above its floor, too."""
        losses = torch.stack([loss for _, loss, _ in self.pending]).tolist()
        now, nothing = time.perf_counter(), [""] * (1 + len(Floor.PARTS))
        per_s = len(losses) * self.batch_size / (now - self.clock)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.clock
        seconds, above = round(sum(self.seconds.values()), 3), nothing
        if phase == "diffusion" and self.floor and (end or self.step % FLOOR_EVERY == 0):
            self.above_floor = self.floor(self.model.eval())
            self.model.train()
            above = [round(nats, 5) for nats in self.above_floor.values()]
            self.seconds["floor"] = self.seconds.get("floor", 0.0) + time.perf_counter() - now
        with self.writing(), open(self.out / "log.csv", "a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            for (step, _, rate), loss in zip(self.pending, losses):
                if not math.isfinite(loss):
                    raise Ended(f"the loss is {loss} at step {step}; {self.last_good()}")
                writer.writerow([step, phase, loss, rate, round(per_s, 1), seconds,
                                 *(above if step == self.step else nothing)])
        self.bar.set_postfix_str(f"loss {losses[-1]:.3f}, {per_s:.0f} images/s", refresh=False)
        self.bar.update(len(losses))
        self.pending, self.clock = [], time.perf_counter()

    def save(self):
        """last.pt: everything needed to go on as if nothing had happened."""
        if not all(weight.isfinite().all() for weight in self.model.parameters()):
            raise Ended(f"a weight is not finite after step {self.step}; {self.last_good()}")
        state = dict(
            format=FORMAT, settings=self.settings, merges=self.tokenizer.merges,
            config=asdict(self.model.config), step=self.step, saved=self.step,
            seconds=self.seconds, results=self.results, above_floor=self.above_floor,
            weights=self.model.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer, _ in self.optimizers])
        with self.writing():
            write(self.out / "last.pt", lambda file: torch.save(state, file))
        self.saved, self.clock = self.step, time.perf_counter()

    def checkpoint(self, name, phase, **more):
        """The weights as they are, for sample.py and the lab."""
        with self.writing():
            save(self.out / name, self.model, self.tokenizer,
                 dict(self.origin, phase=phase, steps=self.step, **more))

    def result(self, phase, evaluated):
        """The figures of the last phase, and what they are of."""
        settings, results, seconds = self.settings, self.results, self.seconds
        quality = "exact_match" if settings["data"] else "correct"
        cuda = dict(peak_memory_mib=round(torch.cuda.max_memory_allocated() / 2 ** 20))
        return dict(results[phase]) | {
            "evaluation_seconds": round(sum(figures.get("evaluation_seconds", 0)
                                            for figures in results.values()), 1),
            f"ar_{quality}": results.get("ar", {}).get(quality),
            "rule": "greedy, left to right" if phase == "ar" else f"confident:{THRESHOLD}",
            **({"nats_above_floor": self.above_floor} if self.above_floor else {}),
            "evaluated": evaluated, "steps": self.step,
            "train_seconds": round(sum(seconds.values()), 1),
            "floor_seconds": round(seconds.get("floor", 0), 1),
            "ms_per_step": {name: round(1000 * seconds[name] / settings[f"{name}_steps"], 1)
                            for name in ("ar", "diffusion") if name in seconds},
            "device": device_name(self.device), "threads": torch.get_num_threads(),
            **{name: settings[name] for name in ("preset", "seed", "variant")},
            **(cuda if self.device.type == "cuda" else {})}
