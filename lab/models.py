"""The models that the claims share: trained by `python train.py`, a process each, where they are
missing, and read back from its folder."""
import ast
import functools
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

from data import toy
from lab.checkpoint import ROOT, load
from lab.evaluate import Scenes, default_way, graded
from train import PRESETS

TRAINED_BY = ("mini_dimple.py", "tokenizer.py", "train.py", "data/*.py", "lab/training.py",
              "lab/run.py", "lab/variants.py")


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

    def options(self):
        """name -> value of the options that are not the default."""
        return {name: getattr(self, name) for name, default in self._field_defaults.items()
                if getattr(self, name) != default}

    def words(self):
        """The options as train.py's words."""
        words = []
        for name, value in self.options().items():
            words += [f"--{name}", *(value if name == "variant" else [value])]
        return words


def digest(*patterns):
    """Of Python files below the repository's folder: what their code says, without comments and
    docstrings."""
    paths = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    said = "".join(code(path.read_text("utf-8")) for path in paths)
    return hashlib.sha256(said.encode()).hexdigest()[:8]


@functools.cache
def code(text):
    """A Python file's text without comments and docstrings; the board asks for the same files once
    for each rule."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(
                body[0].value, ast.Constant):
            body[0].value.value = ""
    return ast.dump(tree)


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
        self.trained_by = digest(*TRAINED_BY)  # after a change of code all is trained anew
        self.graded, self.scenes = {}, {}

    def folder(self, recipe, seed):
        named = dict(ar_steps=recipe.ar_steps, diffusion_steps=recipe.diffusion_steps,
                     **recipe.options(), seed=seed)
        words = [f"{name}_{value if name != 'variant' else '_'.join(value)}"
                 for name, value in named.items()]
        return self.out / "models" / "-".join([*words, self.device.type, self.trained_by])

    def kept(self, recipe):
        """At which steps the weights are kept: of the default recipe at each eighth of the
        diffusion phase, of others at the end."""
        eighths = [recipe.ar_steps + recipe.diffusion_steps * i // 8 for i in range(1, 9)]
        return eighths if recipe == self.default else [recipe.steps]

    def path(self, recipe, seed, step=None):
        name = f"step_{step}.pt" if step not in (None, recipe.steps) else "mini_dimple.pt"
        return self.folder(recipe, seed) / name

    def missing(self, plan):
        """(recipe, seed) of every model of the plan (label -> recipe, seeds) that must still be
        trained, the AR phase of each before it."""
        wanted = [(made, seed) for recipe, seeds in plan.values()
                  for made in (recipe.ar_phase(), recipe)
                  if made.steps for seed in self.seeds(seeds)]
        return [one for one in dict.fromkeys(wanted) if not self.complete(*one)]

    def seeds(self, wanted):
        """The seeds of a recipe that a claim wants so many of."""
        return range(min(wanted, self.most_seeds))

    def complete(self, recipe, seed):
        return (self.folder(recipe, seed) / "result.json").exists()

    def words(self, recipe, seed):
        """train.py's command line. An AR phase is trained once, and shared by all recipes that
        begin with it: its steps do not depend on what follows."""
        ar, diffusion, kept = recipe.ar_steps, recipe.diffusion_steps, self.kept(recipe)[:-1]
        steps = ["--ar-steps", ar, "--diffusion-steps", diffusion]
        if ar and diffusion:
            first = self.folder(recipe.ar_phase(), seed) / "ar_phase.pt"
            steps = ["--ar-phase", first, "--diffusion-steps", diffusion]
        keep = ["--keep", *kept] if kept else []
        few = ["--examples", 200] if self.quick else []
        return ["--out", self.folder(recipe, seed), "--seed", seed, "--device", self.device.type,
                "--evaluate", 0, *steps, *recipe.words(), *few, *keep]

    def train(self, recipe, seed):
        """Train a model, or go on where an earlier call was interrupted; `missing` before it are
        there. Its output goes into train.txt in its folder. Raises ValueError if train.py fails."""
        folder = self.folder(recipe, seed)
        folder.mkdir(parents=True, exist_ok=True)
        how = "--resume" if (folder / "last.pt").exists() else "--overwrite"
        words = [sys.executable, ROOT / "train.py", *self.words(recipe, seed), how]
        log = folder / "train.txt"
        before = log.stat().st_size if log.exists() else 0
        environment = dict(os.environ)
        if self.jobs > 1:  # they share the cores
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.jobs))
        with open(log, "a") as file:
            process = subprocess.Popen([*map(str, words)], stdout=file, stderr=subprocess.STDOUT,
                                       env=environment)
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.wait()  # Ctrl-C reaches it, too: it saves what it has
                raise
        if code == 130:  # where Ctrl-C reached train.py alone
            raise KeyboardInterrupt
        if code:
            lines = log.read_text(errors="replace")[before:].split("\n")
            last = [line for line in lines if line.strip()][-1:]
            if code < 0 or not last:
                last = [f"train.py was ended by signal {-code}; the same command goes on"]
            raise ValueError(f"{folder}: {last[0]}")
        (folder / "last.pt").unlink()  # nothing is left to go on with

    def train_all(self, models, done):
        """Train models, (recipe, seed) each, as many at once as there are jobs: AR phases first, as
        the others begin with them. `done(recipe, seed)` after each."""
        for ar in (True, False):
            wave = [one for one in models if (one[0].diffusion_steps == 0) == ar]
            if self.jobs == 1:
                for one in wave:
                    self.train(*one)
                    done(*one)
                continue
            with ThreadPoolExecutor(self.jobs) as pool:
                running = {pool.submit(self.train, *one): one for one in wave}
                try:
                    for future in as_completed(running):
                        future.result()
                        done(*running[future])
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise

    def model(self, recipe, seed, step=None):
        """-> the trained model and its scenes."""
        model, tokenizer, origin = load(self.path(recipe, seed, step), self.device)
        board = toy.of(origin)
        key = board, tuple(tokenizer.merges)
        if key not in self.scenes:
            self.scenes[key] = Scenes(model.config, tokenizer, self.n_scenes, self.device, board)
        return model, self.scenes[key]

    def above_floor(self, recipe, seeds):
        """The diffusion loss above its floor after training, nats per masked token, by seed."""
        read = lambda seed: json.loads((self.folder(recipe, seed) / "result.json").read_text())
        return [read(seed)["nats_above_floor"]["all"] for seed in self.seeds(seeds)]

    def grade(self, recipe, seed, step=None):
        """A model's captions, decoded as usual: right, what is wrong, iterations, one of each per
        scene. Measured once."""
        key = recipe, seed, step or recipe.steps
        if key not in self.graded:
            model, scenes = self.model(*key)
            phase = "diffusion" if recipe.diffusion_steps else "ar"
            self.graded[key] = graded(default_way(model, scenes, phase), scenes)
        return self.graded[key]

    def grades(self, recipe, seeds):
        return [self.grade(recipe, seed) for seed in self.seeds(seeds)]
