"""Train Mini-Dimple: autoregressive, then diffusion. `python train.py --help` lists the options.

Reads top to bottom: presets, both phases, the end of a phase, options, main. The losses are in
mini_dimple.py, Muon and the data in lab/training.py, what is saved when in lab/run.py."""
import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

from data import Batches, toy
from lab import drawing
from lab.checkpoint import read_state, write
from lab.evaluate import evaluate, floor_of
from lab.results import where
from lab.run import FORMAT, Ended, Run, read_ar_phase, refuse_to_replace
from lab.shell import (Parser, commit, count, options, pick_device, positive, reporting, script,
                       share)
from lab.training import autocast, make_optimizers, prepare
from lab.variants import VARIANTS, PrefixMasked, variant_loss
from mini_dimple import Dimple, ar_loss, diffusion_loss, schedule

PRESETS = {
    "tiny": dict(             # 1 M parameters: minutes on 2 CPU cores
        config=dict(),        # Config's own defaults
        ar_steps=400,         # phase 1: 98% of the captions are right after it
        diffusion_steps=800,  # phase 2
        batch_size=64,
        examples=20_000,      # toy pictures; 1,200 batches are almost four epochs
        muon_lr=0.01,         # peak rates, the same in both phases: nothing is pretrained
        adamw_lr=8e-3,
    ),
    "small": dict(            # 12 M parameters: for one 8 GB GPU
        config=dict(image_px=96, vit_width=256, vit_layers=4, width=384, layers=6, heads=8,
                    window=144),
        ar_steps=2000,
        diffusion_steps=6000,
        batch_size=64,
        examples=40_000,
        muon_lr=0.012,
        adamw_lr=5e-3,
    ),
}


# ---------------------------------------------------------------- both phases

def train(settings, out, data, state=None):
    """A run: settings and state as of `settings_from`, data as of `prepare`; writes into the folder
    `out`. Raises Ended."""
    train_split, held_out, tokenizer, config, origin = data
    ar_steps, diffusion_steps = settings["ar_steps"], settings["diffusion_steps"]
    variants, device = settings["variant"], torch.device(settings["device"])
    torch.manual_seed(settings["seed"])
    model = (PrefixMasked if "prefix-mask" in variants else Dimple)(config).to(device)
    forward = torch.compile(model) if settings["compile"] else model
    batches = Batches(train_split, tokenizer, config, settings["batch_size"], settings["seed"],
                      device, "none" if "unpadded" in variants else "random")
    # Muon for the matrices that turn features into features, AdamW for norms, positions, token
    # embedding and head
    new_optimizers = lambda: make_optimizers(model, settings["muon_lr"], settings["adamw_lr"])
    origin = dict(origin, commit=commit(), prefix_mask="prefix-mask" in variants,
                  **{name: settings[name] for name in ("preset", "seed", "variant")})
    floor = floor_of(origin, config, tokenizer, device) if diffusion_steps else None
    run = Run(settings, out, device, model, new_optimizers(), tokenizer, origin, floor)
    if state:
        run.go_on(state)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{settings['preset']}: {parameters / 1e6:.2f} M parameters, {len(train_split.texts):,} "
          f"training pictures, on {where(device)}, into {out}", flush=True)

    generator = torch.Generator(device)
    with run.kept():
        for phase, start, end in (("ar", 0, ar_steps),
                                  ("diffusion", ar_steps, ar_steps + diffusion_steps)):
            if start == end or phase in run.results:
                continue  # not asked for, or done before
            model.train()
            for step in range(max(start, run.step), end):
                if step == start:  # each phase is a training run of its own, as in the paper
                    run.optimizers = new_optimizers()
                factor = schedule(step - start, end - start)
                for optimizer, peak in run.optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = peak * factor
                # random numbers depend on seed and step alone: a resumed run repeats them
                generator.manual_seed(settings["seed"] * 1_000_003 + step)
                # images, prompt, response; phase 2 fills it with EOS up to a random length
                batch = batches(step, phase)
                with autocast(device):
                    if phase == "ar":
                        loss = ar_loss(forward, *batch)
                    elif variants:
                        loss = variant_loss(forward, *batch, generator, variants)
                    else:
                        loss = diffusion_loss(forward, *batch, generator)
                loss.backward()
                for optimizer, _ in run.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                # log.csv, last.pt, Ctrl-C
                run.after_step(phase, loss, settings["adamw_lr"] * factor)
            finish(run, phase, held_out)


def finish(run, phase, held_out):
    """The end of a phase: captions of held-out pictures, and a checkpoint; after the last phase
    samples.png and result.json, too."""
    figures, n, last = {}, len(held_out.texts), run.step == run.total
    if n:
        figures, texts, right = evaluate(run.model.eval(), run.tokenizer, held_out,
                                         dict(run.origin, phase=phase), run.device)
    if phase == "ar":
        run.checkpoint("ar_phase.pt", phase, figures=figures)
    if last:
        run.checkpoint("mini_dimple.pt", phase, figures=figures)
    if n:
        print(f"{phase}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()
                                       if not isinstance(value, dict)), flush=True)
    run.results[phase] = figures
    if not last:
        run.save()
        return
    if n:
        shown = held_out.images[:8].permute(0, 2, 3, 1).numpy()
        sheet = drawing.samples_sheet(map(Image.fromarray, shown), texts, right)
        drawing.save(run.out / "samples.png", sheet)
    text = json.dumps(run.result(phase, n), indent=1)
    write(run.out / "result.json", lambda file: file.write(text.encode()))
    shown = f"pictures with the model's captions: {run.out / 'samples.png'}; " if n else ""
    print(f"{shown}figures: {run.out / 'result.json'}")


# ---------------------------------------------------------------- options

def parse(argv=None):
    """-> the parser and its arguments; those that a preset decides are absent if not given."""
    parser = Parser(description=__doc__.splitlines()[0])
    option, of_preset = parser.add_argument, dict(default=argparse.SUPPRESS)
    default = lambda name: ", ".join(f"{preset}: {values[name]:,}"
                                     for preset, values in PRESETS.items())
    option("--out", type=Path, default=Path("out"), metavar="DIR",
           help="where everything is written (default: out)")
    option("--preset", choices=PRESETS, default="tiny",
           help="tiny: 2 CPU cores (default); small: one 8 GB GPU")
    option("--ar-steps", type=count, **of_preset, metavar="N",
           help=f"steps of phase 1 ({default('ar_steps')}); 0 for diffusion alone")
    option("--diffusion-steps", type=count, **of_preset, metavar="N",
           help=f"steps of phase 2 ({default('diffusion_steps')}); 0 for AR alone")
    option("--ar-phase", metavar="F", help="take phase 1, its preset and tokenizer from another "
           "run's ar_phase.pt, and train phase 2 alone")
    option("--data", metavar="DIR", help="your own pictures: image files and a metadata.jsonl")
    option("--holdout", type=share, default=0.1, metavar="F",
           help="share of your pictures held out (default: 0.1; 0 for none)")
    option("--wording", choices=toy.WORDINGS, default="two", help="in how many ways the toy "
           "captions may tell an object, how much a picture leaves open (default: two)")
    option("--order", choices=toy.ORDERS, default="reading", help="of the objects in a toy caption "
           "(default: reading; free is hard, and for tiny only)")
    option("--examples", type=positive, **of_preset, metavar="N",
           help=f"toy pictures to train on ({default('examples')})")
    option("--evaluate", type=count, metavar="N", help="held-out pictures captioned after each "
           "phase (default: 1000 toy scenes, or all of your own; 0 for none)")
    option("--keep", type=positive, nargs="+", default=[], metavar="STEP",
           help="keep the weights of these steps, too, as step_N.pt")
    option("--variant", choices=VARIANTS, nargs="+", default=[], metavar="NAME", help="of phase 2: "
           + "; ".join(f"{name}, {words}" for name, words in VARIANTS.items()))
    options(parser, "device", "seed")
    option("--compile", action="store_true", help="torch.compile the training step: slow to start")
    option("--resume", action="store_true",
           help="go on from DIR/last.pt, with that run's options: others are ignored")
    option("--overwrite", action="store_true", help="replace what an earlier run left in DIR")
    return parser, parser.parse_args(argv)


def settings_from(args):
    """-> settings, the options and what their preset decides (dict), and the state that the run
    begins with, of --resume or --ar-phase, or None. Raises ValueError, OSError."""
    if args.resume:
        state = read_state(args.out / "last.pt", FORMAT)
        return state["settings"], state
    if {"flat", "example"} <= set(args.variant):
        raise ValueError("--variant: flat and example are two means of one loss; choose one")
    settings = {name: value for name, value in vars(args).items()
                if name not in ("out", "resume", "overwrite")}
    settings |= dict(device=pick_device(args.device).type, merges=None)
    state = None
    if args.ar_phase:
        decided, state = read_ar_phase(args.ar_phase, args.data)
        settings |= decided
    settings = PRESETS[settings["preset"]] | settings
    if not settings["diffusion_steps"] and (state or not settings["ar_steps"]):
        raise ValueError("--diffusion-steps 0, and no step of phase 1: nothing to train")
    if settings["order"] == "free" and settings["preset"] != "tiny":
        raise ValueError("--order free is for the preset tiny: twelve objects have too many orders")
    return settings, state


# ---------------------------------------------------------------- main

@script
def main(argv=None):
    parser, args = parse(argv)
    with reporting(ValueError, OSError):
        if args.resume and (args.out / "result.json").exists():
            print(f"{args.out} is finished: nothing to resume")
            return
        if not args.resume:
            refuse_to_replace(args)
        settings, state = settings_from(args)
        data = prepare(settings)
        found = data.tokenizer.merges, asdict(data.config)
        if args.resume and found != (state["merges"], state["config"]):
            raise ValueError("--resume: the data are no longer what the run began with: they give "
                             "another tokenizer or Config")
    try:
        with reporting(OSError):  # a full disk: last.pt is whole, or not there yet
            train(settings, args.out, data, state)
    except Ended as why:
        print(f"{parser.prog}: {why}", file=sys.stderr)
        raise SystemExit(why.status) from None


if __name__ == "__main__":
    main()
