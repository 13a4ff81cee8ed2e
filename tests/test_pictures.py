"""docs/pictures.md: its Python turns a package like the one that it fetches into a data folder."""
import io
import json
import re
import tarfile
import urllib.request

from PIL import Image

from data import folder
from lab.checkpoint import ROOT

PAGE = (ROOT / "docs" / "pictures.md").read_text("utf-8")


def test_the_package_becomes_a_data_folder(tmp_path, monkeypatch):
    names = {"1f600.png": "GRINNING FACE", "1f1ea-1f1f8.png": "Spain Flag", "1f468.png": "MAN"}
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w:gz") as archive:
        def add(name, content):
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        add("emoji.json", json.dumps([dict(image=image, name=name, short_name="x")
                                      for image, name in names.items()]).encode())
        for i, image in enumerate(names):
            file = io.BytesIO()
            Image.new("RGBA", (64, 64), (80 * i, 0, 0, 255)).save(file, "PNG")
            add(f"img/twitter/64/{image}", file.getvalue())
    asked = []

    def urlopen(url):
        asked.append(url)
        return io.BytesIO(package.getvalue())
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", PAGE, re.S)[1], {})
    assert len(asked) == 1 and asked[0].startswith("https://registry.npmjs.org/")
    (train, _), _ = folder.read(tmp_path / "out" / "emoji", 48, 0)
    assert sorted(train.texts) == ["grinning face", "man", "spain flag"]
    assert train.images.shape == (3, 3, 48, 48)
