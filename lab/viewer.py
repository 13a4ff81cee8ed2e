"""Decodings side by side as one HTML file that opens in any browser: `python -m lab show`, and
sample.py --picture F.html. docs/viewer.md describes the data in it."""
import base64
import io
import itertools
import json
from pathlib import Path

import torch
from PIL import Image

from data import DESCRIBE, toy
from lab.checkpoint import load, write
from lab.evaluate import THRESHOLD, Pictures, mistake
from lab.shell import reporting
from lab.trace import follow, told
from rules import resolve, resolve_look

PAGE = Path(__file__).with_name("viewer.html")
PLACE = '<script type="application/json" id="decoding">null</script>'
FORMAT = "mini-dimple decoding 1"
ON = ("trained", "weak", "exact")


def picture_of(image):
    """What a model sees (3, H, H) uint8 -> a picture (PIL)."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def decoding(picture, source, prompt, runs):
    """A picture (PIL), where it comes from, what was asked, and its runs (`lab.trace.told`) -> the
    data of the viewer, plain values."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return dict(format=FORMAT, picture=uri, source=source, prompt=prompt, runs=runs)


def save_viewer(path, decoding):
    """The viewer with these data in it, a file that needs no other. Raises OSError."""
    # "</script>" in a token would end the element; in a JSON text "<" may be written so
    data = json.dumps(decoding).replace("<", "\\u003c")
    page = PAGE.read_text("utf-8").replace(PLACE, PLACE.replace("null", data))
    write(path, lambda file: file.write(page.encode()))


def read_decoding(path):
    """A JSON file of anyone's -> the data of the viewer. Raises OSError; ValueError, with the file
    and the entry, if the page would show them wrongly."""
    entry = "the file"
    try:
        data = json.loads(Path(path).read_text("utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f'format: expected "{FORMAT}"')
        for r, run in enumerate(data["runs"]):
            for k, iteration in enumerate(run["iterations"]):
                entry = f"runs[{r}].iterations[{k}]"
                n = len(iteration["tokens"])
                for name in ("why", "confidence", "likeliest"):
                    if len(iteration[name]) != n:
                        raise ValueError(f"{entry}.{name}: expected {n}, one for each token")
    except ValueError as error:
        raise ValueError(f"{path}: {error} (docs/viewer.md)") from None
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: {entry}: missing or misshapen: {error} (docs/viewer.md)"
                         ) from None
    return data


# ---------------------------------------------------------------- python -m lab show

def runs_of(args, device):
    """The decodings that were asked for of one held-out scene: each rule on each model ->
    `decoding`."""
    files = {"trained": args.checkpoint, "weak": args.weak_checkpoint}
    with reporting(ValueError, OSError):
        loaded = {name: load(files[name], device) for name in {"trained", *args.on} - {"exact"}}
        for name, (_, _, origin) in loaded.items():
            if toy.of(origin) is None or origin["phase"] != "diffusion":
                raise ValueError(f"{files[name]}: needed are weights of the diffusion phase, "
                                 "trained on a toy set; sample.py --picture F.html shows others")
        rules = [resolve(text) for text in args.rule or [f"confident:{THRESHOLD}"]]
        look_of = resolve_look(args.look)
    model, tokenizer, origin = loaded["trained"]
    board = toy.of(origin)
    split = toy.examples(board, 1, args.seed, held_out=True, instruction=DESCRIBE)
    pictures = Pictures(split, model.config, tokenizer, device, board, args.length)
    images, prompts, window = pictures[:1]
    runs = []
    for name, rule in itertools.product(args.on, rules):
        model = loaded["trained" if name == "exact" else name].model
        look = (pictures.exact()(torch.tensor([0])) if name == "exact" else
                look_of(model, images, prompts))
        out, trace = follow(model, look, window, rule, args.temperature, args.seed)
        caption, ended = tokenizer.decode(out.response(0)), out.ends[0].item() < window.shape[1]
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
