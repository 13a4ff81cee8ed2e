"""`python -m lab show`: rules side by side on one held-out scene, as a page for the browser."""
import itertools

import torch

from data import DESCRIBE, toy
from lab.board import load_weights
from lab.evaluate import THRESHOLD, Pictures, mistake
from lab.shell import reporting
from lab.trace import NOTHING_NAMED, follow, told
from lab.viewer import decoding, picture_of, read_decoding, save_viewer
from rules import resolve, resolve_look


def runs_of(args, device):
    """Each rule on each model of `--on`: what `decoding` makes of it."""
    with reporting(ValueError, OSError):
        weights = load_weights(args, device, *dict.fromkeys(
            ["trained", *(name for name in args.on if name != "exact")]))
        rules = [resolve(text) for text in args.rule or [f"confident:{THRESHOLD}"]]
        look_of = resolve_look(args.look)
    board, tokenizer, models = weights
    config, runs = models["trained"].config, []
    split = toy.examples(board, 1, args.seed, held_out=True, instruction=DESCRIBE)
    pictures = Pictures(split, config, tokenizer, device, board, args.length)
    images, prompts, window = pictures[:1]
    for name, rule in itertools.product(args.on, rules):
        model = models["trained" if name == "exact" else name]
        look = (pictures.exact()(torch.tensor([0])) if name == "exact" else
                look_of(model, images, prompts))
        out, trace = follow(model, look, window, rule, args.temperature, args.seed)
        caption, ended = tokenizer.decode(out.response(0)), out.ends[0].item() < window.shape[1]
        if trace.names_nothing():
            print(f"hint: {rule.__name__}, {name}: {NOTHING_NAMED}")
        wrong = mistake(caption, ended, split, board, 0)
        runs.append(told(f"{rule.__name__}, {name}", window[0], trace, tokenizer,
                         caption=caption, grade=f"wrong ({wrong})" if wrong else "fully right"))
    source = f"a held-out scene, --seed {args.seed}"
    if args.temperature:
        source += f", temperature {args.temperature}"
    return decoding(picture_of(split.images[0]), source, DESCRIBE, runs)


def show(args, device, command):
    """Writes the page, prints where it is, and returns its data."""
    if args.data:
        with reporting(ValueError, OSError):
            data = read_decoding(args.data)
    else:
        data = runs_of(args, device)
    save_viewer(args.picture, data)
    for run in data["runs"]:
        passes = sum(iteration.get("passes") or 1 for iteration in run["iterations"])
        print(f"{run['title']}: {len(run['iterations'])} iterations, {passes} passes"
              + (f"; {run['grade']}" if run.get("grade") else ""))
    print(f"open it in a browser: {args.picture.absolute().as_uri()}")
    return data
