"""What a training run writes, and how it stops:

    last.pt         every 100 steps, at the end of a phase, at Ctrl-C and SIGTERM: weights,
                    optimizers, step and log, for --resume
    log.csv         every 10 steps
    ar_phase.pt     at the end of phase 1: the weights
    mini_dimple.pt  at the end of the last phase: the weights; with samples.png and result.json
    step_N.pt       after step N of --keep: the weights
"""
import contextlib
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from data import toy
from lab.checkpoint import load, save, write
from lab.evaluate import THRESHOLD, Floor
from lab.results import where
from mini_dimple import Dimple

SAVE_EVERY = 100   # steps between two writes of last.pt: what kill -9 can cost
LOG_EVERY = 10     # steps between two looks at the loss: each look waits for the device
FLOOR_EVERY = 100  # steps between two measurements of the loss above its floor
FORMAT = "mini-dimple run 7"
FILES = ("mini_dimple.pt", "ar_phase.pt", "last.pt", "log.csv", "samples.png", "result.json")
# AdamW's rate, Muon's is in proportion; above the floor: nats per token, by share masked
LOG_COLUMNS = ("step", "phase", "loss", "learning_rate", "seconds", "above_floor",
               *(f"above_floor_{part}" for part in Floor.PARTS))
KEPT = ("step", "saved", "seconds", "results", "above_floor", "rows")  # fields of Run, in last.pt


def written_in(out):
    """The files in the folder that training would write."""
    return [path for name in (*FILES, "step_[0-9]*.pt") for path in out.glob(name)]


def refuse_to_replace(args):
    """Raises ValueError where a new run would write over what is not its own."""
    if args.ar_phase and Path(args.ar_phase).resolve().parent == args.out.resolve():
        raise ValueError(f"--out {args.out}: holds the --ar-phase; choose another")
    found = written_in(args.out)
    if found and not args.overwrite:
        raise ValueError(f"--out {args.out}: holds {found[0].name} of another run; --resume goes "
                         "on with one that is unfinished, --overwrite replaces it")


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
    return decided, dict(step=origin["steps"], saved=0, seconds={}, above_floor={}, rows=[],
                         results={"ar": origin.get("figures", {})}, optimizers=[],
                         weights=model.state_dict())


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
    step: int = 0
    saved: int = 0            # the step of last.pt; 0: there is none
    seconds: dict = field(default_factory=dict)      # of each phase
    results: dict = field(default_factory=dict)      # of each phase that is evaluated: its figures
    above_floor: dict = field(default_factory=dict)  # as measured last
    rows: list = field(default_factory=list)         # lines of log.csv

    def __post_init__(self):
        self.total = self.settings["ar_steps"] + self.settings["diffusion_steps"]

    def go_on(self, state):
        """From what `save` wrote, or from an --ar-phase."""
        self.model.load_state_dict(state["weights"])
        for (optimizer, _), saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        for name in KEPT:
            setattr(self, name, state[name])

    @contextlib.contextmanager
    def kept(self):
        """Inside, the folder's log ends at this step, and the first Ctrl-C or SIGTERM raises Ended
        once a step is finished and saved."""
        self.out.mkdir(parents=True, exist_ok=True)
        if not self.saved:
            for path in written_in(self.out):
                path.unlink()
        log = "".join([",".join(LOG_COLUMNS) + "\n", *self.rows])
        write(self.out / "log.csv", lambda file: file.write(log.encode()))
        self.pending, self.bar, self.signal, self.clock = [], None, 0, time.perf_counter()

        def stop(number, _):
            signal.signal(number, before[number])  # the second one ends at once
            self.signal = number
            if self.bar is None:  # in an evaluation: all steps are saved
                raise self.ended("stopped", 128 + number)
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self.bar:
                self.bar.close()

    def ended(self, why, status=1):
        """The exception that ends the run: why, and what is safe."""
        safe = "there is no checkpoint yet"
        if self.saved:
            safe = (f"the last good checkpoint is {self.out / 'last.pt'} (step {self.saved}); "
                    f"python train.py --resume --out {self.out} goes on from it")
        return Ended(f"{why}; {safe}", status)

    def after_step(self, phase, loss, rate):
        """To be called after each step: logs, saves, and ends the run where a signal came."""
        self.step += 1
        self.pending.append((self.step, loss.detach(), rate))
        if self.bar is None:
            self.bar = tqdm(total=self.total, initial=self.step - 1, unit="step", desc=phase)
        end = self.step in (self.settings["ar_steps"], self.total)
        save_now = self.signal or end or self.step % SAVE_EVERY == 0
        if save_now or self.step % LOG_EVERY == 0:
            self.log(phase, end)
        if self.step in self.settings["keep"]:
            self.checkpoint(f"step_{self.step}.pt", phase)
        if save_now:
            self.save()
        if end:
            self.bar.close()
            self.bar = None
        if save_now and self.signal:
            raise self.ended("stopped", 128 + self.signal)

    def log(self, phase, end):
        """Look at the losses since the last look; the device is waited for only here. At times, see
        how far the loss is above its floor, too."""
        losses = torch.stack([loss for _, loss, _ in self.pending]).tolist()
        now, nothing = time.perf_counter(), [""] * (1 + len(Floor.PARTS))
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.clock
        seconds, above = round(sum(self.seconds.values()), 3), nothing
        if phase == "diffusion" and self.floor and (end or self.step % FLOOR_EVERY == 0):
            self.above_floor = self.floor(self.model.eval())
            self.model.train()
            above = [round(nats, 5) for nats in self.above_floor.values()]
        for (step, _, rate), loss in zip(self.pending, losses):
            row = [step, phase, loss, rate, seconds, *(above if step == self.step else nothing)]
            self.rows.append(",".join(map(str, row)) + "\n")
        with open(self.out / "log.csv", "a") as file:
            file.writelines(self.rows[-len(losses):])
        self.bar.set_postfix_str(f"loss {losses[-1]:.3f}", refresh=False)
        self.bar.update(len(losses))
        self.pending, self.clock = [], time.perf_counter()

    def save(self):
        """last.pt: everything needed to go on as if nothing had happened."""
        if not all(weight.isfinite().all() for weight in self.model.parameters()):
            raise self.ended(f"a weight is not finite after step {self.step}: see log.csv")
        self.saved = self.step
        state = dict(
            {name: getattr(self, name) for name in KEPT}, format=FORMAT, settings=self.settings,
            merges=self.tokenizer.merges, config=asdict(self.model.config),
            weights=self.model.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer, _ in self.optimizers])
        write(self.out / "last.pt", lambda file: torch.save(state, file))
        self.clock = time.perf_counter()

    def checkpoint(self, name, phase, **more):
        """The weights as they are, for sample.py and the lab."""
        save(self.out / name, self.model, self.tokenizer,
             dict(self.origin, phase=phase, steps=self.step, **more))

    def result(self, phase, evaluated):
        """The figures of the last phase, and what they are of."""
        settings, quality = self.settings, "exact_match" if self.settings["data"] else "correct"
        result = self.results[phase] | {
            f"ar_{quality}": self.results.get("ar", {}).get(quality),
            "rule": "greedy, left to right" if phase == "ar" else f"confident:{THRESHOLD}",
            "evaluated": evaluated, "steps": self.step,
            "train_seconds": round(sum(self.seconds.values()), 1),
            "ms_per_step": {name: round(1000 * seconds / settings[f"{name}_steps"], 1)
                            for name, seconds in self.seconds.items()},
            "device": where(self.device),
            **{name: settings[name] for name in ("preset", "seed", "variant")}}
        if self.above_floor:
            result["nats_above_floor"] = self.above_floor
        if self.device.type == "cuda":
            result["peak_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2 ** 20)
        return result
