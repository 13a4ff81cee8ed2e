"""Decodings side by side as one HTML file that opens in any browser, for sample.py and for
`python -m lab show`. docs/viewer.md describes the data in it."""
import base64
import io
import json
from pathlib import Path

from PIL import Image

from lab.checkpoint import write

PAGE = Path(__file__).with_name("viewer.html")
PLACE = '<script type="application/json" id="decoding">null</script>'
FORMAT = "mini-dimple decoding 1"


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
