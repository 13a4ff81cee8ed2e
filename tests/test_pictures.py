"""docs/pictures.md: its Python turns a package like the one that it fetches into a data folder, and
counts the captions that are names."""
import io
import json
import re
import tarfile
import urllib.request

import pytest
import torch
from conftest import stateless, untrained
from PIL import Image

from data import DESCRIBE, folder
from lab import evaluate
from lab.checkpoint import ROOT, save

PAGE = (ROOT / "docs" / "pictures.md").read_text("utf-8")
FETCH, COUNT = re.findall(r"```python\n(.*?)```", PAGE, re.S)
NAMES = {"1f600.png": "GRINNING FACE", "1f1ea-1f1e6.png": "Ceuta & Melilla Flag",
         "1f1ea-1f1f8.png": "Spain Flag", "1f468.png": "MAN"}


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A folder in which the page's first block has run, on a package of four emoji, of which two
    are one picture."""
    contents = {"emoji.json": json.dumps([dict(image=image, name=name)
                                          for image, name in NAMES.items()]).encode()}
    for image, name in NAMES.items():
        file = io.BytesIO()
        red = 80 * ("Flag" in name) + 160 * (name == "MAN")
        Image.new("RGBA", (64, 64), (red, 0, 0, 255)).save(file, "PNG")
        contents[f"img/twitter/64/{image}"] = file.getvalue()
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w:gz") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    monkeypatch.setattr(urllib.request, "urlopen", lambda url: io.BytesIO(package.getvalue()))
    monkeypatch.chdir(tmp_path)
    exec(FETCH, {})
    return tmp_path


def test_the_package_becomes_a_data_folder(fetched):
    (train, _), _ = folder.read(fetched / "out" / "emoji", 48, 0)
    assert train.texts == [name.lower() for name in NAMES.values()]
    assert train.images.shape == (4, 3, 48, 48)
    assert torch.equal(train.images[1], train.images[2])


def test_what_counts_as_a_name(fetched, monkeypatch, capsys):
    """Whatever the picture, this model says "spain flag": one name of four is exact, and the one
    picture with two names has one of them."""
    model, tokenizer = untrained(["spain flag", DESCRIBE])
    (fetched / "out" / "names").mkdir()
    save(fetched / "out" / "names" / "mini_dimple.pt", model, tokenizer,
         dict(phase="diffusion", trained_on="pictures", prompt=DESCRIBE))
    said = tokenizer.encode("spain flag")
    said = torch.tensor(said + [tokenizer.eos_id] * (48 - len(said)))
    sure = 50.0 * torch.nn.functional.one_hot(said, tokenizer.vocab_size)
    decoded = evaluate.decoded
    monkeypatch.setattr(evaluate, "decoded", lambda model, batch, rule, **options: decoded(
        model, batch, rule, lambda *_: stateless(lambda tokens: sure.expand(len(tokens), -1, -1)),
        **options))
    exec(COUNT, {})
    assert capsys.readouterr().out.endswith("\n25.0% exact, of the ten 1 of 1, 1.00 passes\n")
    every = COUNT.replace("temperature, draws = 0.0, 0 ", "temperature, draws = 1.0, 100 ")
    assert every != COUNT
    exec(every, {})
    assert "\n0.0% exact, of the ten 100 of 100, 1.00 passes\n" in capsys.readouterr().out
