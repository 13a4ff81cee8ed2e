"""The models that the claims share: trained by `train.train` where they are missing, each in a
process of its own."""
import json
import multiprocessing
import os
import sys
from multiprocessing.connection import wait
from typing import NamedTuple

import torch

from data import toy
from lab.checkpoint import load
from lab.evaluate import Scenes, default_way, graded
from lab.training import prepare
from train import PRESETS, parse, settings_from, train


class Recipe(NamedTuple):
    """What a claim trains: steps of both phases, and train.py's options of the toy set and of the
    diffusion phase (names of lab.variants)."""
    ar_steps: int
    diffusion_steps: int
    wording: str = "two"
    examples: int | None = None  # None: the preset's
    variant: tuple = ()

    @property
    def steps(self):
        return self.ar_steps + self.diffusion_steps

    def ar_phase(self):
        """The recipe of the first phase alone."""
        return Recipe(self.ar_steps, 0, self.wording, self.examples)

    def name(self):
        options = [f"examples_{self.examples}"] * bool(self.examples)
        return "-".join([f"ar_{self.ar_steps}", f"diffusion_{self.diffusion_steps}", self.wording,
                         *options, *self.variant])


def run(folder, options, threads):
    """A process: train.py with these options into the folder, or on from where a process before it
    was interrupted; what it prints goes into train.txt there."""
    sys.stdout = sys.stderr = open(folder / "train.txt", "a", buffering=1)
    if threads:
        torch.set_num_threads(threads)
    args = parse([])[1]
    vars(args).update(options, out=folder, evaluate=0, resume=(folder / "last.pt").exists())
    settings, state = settings_from(args)
    train(settings, folder, prepare(settings), state)


class Lab:
    """The models, and the scenes they are measured on."""

    def __init__(self, args, device):
        self.out, self.device = args.out / "quick" if args.quick else args.out, device
        self.most_seeds, self.jobs = 1 if args.quick else args.seeds, args.jobs
        self.n_scenes = 8 if args.quick else args.scenes
        self.quick = args.quick
        steps = PRESETS["tiny"]
        self.default = (Recipe(4, 8) if args.quick else
                        Recipe(steps["ar_steps"], steps["diffusion_steps"]))
        self.grades, self.scenes = {}, {}

    def seeds(self, wanted):
        """The seeds of a recipe that a claim wants so many of."""
        return range(min(wanted, self.most_seeds))

    def folder(self, recipe, seed):
        return self.out / "models" / f"{recipe.name()}-seed_{seed}-{self.device.type}"

    def missing(self, plan):
        """(recipe, seed) of every model of the plan (label -> recipe, seeds) that must still be
        trained, the AR phase of each before it: recipes that begin alike share it."""
        wanted = [(made, seed) for recipe, seeds in plan.values()
                  for made in (recipe.ar_phase(), recipe)
                  if made.steps for seed in self.seeds(seeds)]
        return [one for one in dict.fromkeys(wanted)
                if not (self.folder(*one) / "result.json").exists()]

    def options(self, recipe, seed):
        """train.py's, of a model whose AR phase is there."""
        options = recipe._asdict() | dict(seed=seed, device=self.device.type)
        options["variant"] = list(recipe.variant)
        if recipe.ar_steps and recipe.diffusion_steps:
            options["ar_phase"] = str(self.folder(recipe.ar_phase(), seed) / "ar_phase.pt")
        if not recipe.examples:
            options["examples"] = 200 if self.quick else PRESETS["tiny"]["examples"]
        return options

    def train(self, models, done):
        """Train models, (recipe, seed) each, as many at once as there are jobs: AR phases first, as
        the others begin with them. `done(recipe, seed)` after each. Raises ValueError where a
        training fails."""
        threads = max(1, (os.cpu_count() or 1) // self.jobs) * (self.jobs > 1)  # 0: as they are
        spawn, running = multiprocessing.get_context("spawn"), {}
        for ar in (True, False):
            waiting = [one for one in models if (one[0].diffusion_steps == 0) == ar]
            try:
                while waiting or running:
                    while waiting and len(running) < self.jobs:
                        one = waiting.pop(0)
                        folder = self.folder(*one)
                        folder.mkdir(parents=True, exist_ok=True)
                        process = spawn.Process(target=run, args=(
                            folder, self.options(*one), threads))
                        process.start()
                        running[process.sentinel] = process, one
                    for ended in wait(running):
                        process, one = running.pop(ended)
                        process.join()
                        if process.exitcode:
                            raise ValueError(f"{self.folder(*one) / 'train.txt'}: this training "
                                             f"failed (exit code {process.exitcode})")
                        (self.folder(*one) / "last.pt").unlink()  # nothing is left to go on with
                        done(*one)
            finally:
                for process, _ in running.values():
                    process.terminate()  # SIGTERM: it saves, to go on next time
                for process, _ in running.values():
                    process.join()

    def model(self, recipe, seed):
        """-> the trained model and its scenes."""
        model, tokenizer, origin = load(self.folder(recipe, seed) / "mini_dimple.pt", self.device)
        key = toy.of(origin), tuple(tokenizer.merges)
        if key not in self.scenes:
            self.scenes[key] = Scenes(model.config, tokenizer, self.n_scenes, self.device, key[0])
        return model, self.scenes[key]

    def above_floor(self, recipe, seeds):
        """The diffusion loss above its floor after training, nats per masked token, by seed."""
        read = lambda seed: json.loads((self.folder(recipe, seed) / "result.json").read_text())
        return [read(seed)["nats_above_floor"]["all"] for seed in self.seeds(seeds)]

    def graded(self, recipe, seeds):
        """Its captions, decoded as usual: Captions of each seed. Measured once."""
        for seed in self.seeds(seeds):
            if (recipe, seed) not in self.grades:
                model, scenes = self.model(recipe, seed)
                way = default_way(model, scenes, "diffusion" if recipe.diffusion_steps else "ar")
                self.grades[recipe, seed] = graded(way, scenes)
        return [self.grades[recipe, seed] for seed in self.seeds(seeds)]
