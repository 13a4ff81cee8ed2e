"""Decodings side by side as one HTML file that opens in any browser: `python -m lab show`, and
sample.py --picture F.html. docs/viewer.md describes the data in it."""
import base64
import io
import json
from pathlib import Path

import torch
from PIL import Image

from data import DESCRIBE, toy
from lab.checkpoint import load, write
from lab.evaluate import THRESHOLD, Pictures
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
    and the entry, if they are not of that form."""
    def expect(right, place, wanted):
        if not right:
            raise ValueError(f"{path}: {place}: expected {wanted} (docs/viewer.md)")
    text = lambda x: isinstance(x, str)
    number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool)
    optional = lambda of: lambda x: x is None or of(x)
    several = lambda of: lambda x: isinstance(x, list) and all(map(of, x))
    word = lambda x: isinstance(x, list) and len(x) == 2 and text(x[0]) and number(x[1])
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    expect(isinstance(found, dict) and found.get("format") == FORMAT, "format", f'"{FORMAT}"')
    for name in ("picture", "source", "prompt"):
        expect(optional(text)(found.get(name)), name, "a text, or null")
    picture = found.get("picture")
    expect(not picture or picture.startswith("data:image/"), "picture", "a data: URI")
    expect(several(lambda x: isinstance(x, dict))(found.get("runs")) and found["runs"], "runs",
           "a list of objects, one or more")
    for r, run in enumerate(found["runs"]):
        place = f"runs[{r}]"
        expect(text(run.get("title")), f"{place}.title", "a text")
        for name in ("caption", "grade"):
            expect(optional(text)(run.get(name)), f"{place}.{name}", "a text, or null")
        expect(several(optional(text))(run.get("window")) and run["window"], f"{place}.window",
               "a list of texts, null where masked")
        expect(several(lambda x: isinstance(x, dict))(run.get("iterations")),
               f"{place}.iterations", "a list of objects")
        for k, iteration in enumerate(run["iterations"]):
            here = f"{place}.iterations[{k}]"
            tokens = iteration.get("tokens")
            expect(several(optional(text))(tokens) and tokens, f"{here}.tokens",
                   "a list of texts, null where masked")
            for name, of, wanted in (
                    ("why", optional(text), "texts or null"), ("confidence", number, "numbers"),
                    ("likeliest", several(word), "lists of [text, probability]")):
                value = iteration.get(name)
                expect(several(of)(value) and len(value) == len(tokens), f"{here}.{name}",
                       f"a list of {len(tokens)} {wanted}, one for each token")
            for name in ("passes", "tokens_computed"):
                expect(optional(number)(iteration.get(name)), f"{here}.{name}",
                       "a number, or null")
    return found


# ---------------------------------------------------------------- python -m lab show

def runs_of(args, device):
    """The decodings that were asked for of one held-out scene: each rule on each model ->
    `decoding`. Raises ValueError, RuleError."""
    files = {"trained": args.checkpoint, "weak": args.weak_checkpoint}
    loaded = {name: load(files[name], device)
              for name in dict.fromkeys(["trained", *args.on]) if name != "exact"}
    for name, (_, _, origin) in loaded.items():
        if toy.of(origin) is None or origin["phase"] != "diffusion":
            raise ValueError(f"{files[name]}: needed are weights of the diffusion phase, trained "
                             "on a toy set; sample.py --picture F.html shows others")
    model, tokenizer, origin = loaded["trained"]
    board = toy.of(origin)
    split = toy.examples(board, 1, args.seed, held_out=True, instruction=DESCRIBE)
    pictures = Pictures(split, model.config, tokenizer, device, board, args.length)
    images, prompts, window = pictures[:1]
    runs, look_of = [], resolve_look(args.look)
    for name in args.on:
        for text in args.rule or [f"confident:{THRESHOLD}"]:
            rule, model = resolve(text), loaded["trained" if name == "exact" else name].model
            look = (pictures.exact()(torch.tensor([0])) if name == "exact" else
                    look_of(model, images, prompts))
            out, trace = follow(model, look, window, rule, args.temperature, args.seed)
            caption = tokenizer.decode(out.response(0))
            wrong = toy.mistake(caption, split.scenes[0], board,
                                out.ends[0].item() < out.tokens.shape[1])
            runs.append(told(f"{rule.__name__}, {name}", window[0], trace, tokenizer,
                             caption=caption, grade=f"wrong ({wrong})" if wrong else "fully right"))
    source = f"a held-out scene, --seed {args.seed}"
    if args.temperature:
        source += f", temperature {args.temperature}"
    return decoding(picture_of(split.images[0]), source, DESCRIBE, runs)


def show(args, device, command):
    """Writes the page, prints where it is, and returns its data."""
    data = read_decoding(args.data) if args.data else runs_of(args, device)
    save_viewer(args.picture, data)
    for run in data["runs"]:
        passes = sum(iteration.get("passes") or 1 for iteration in run["iterations"])
        print(f"{run['title']}: {len(run['iterations'])} iterations, {passes} passes"
              + (f"; {run['grade']}" if run.get("grade") else ""))
    print(f"open it in a browser: {args.picture.absolute().as_uri()}")
    return data
