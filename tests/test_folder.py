"""Your own pictures: every mode and size is read, everything wrong is named by file and line."""
import json

import numpy as np
import pytest
from PIL import Image

from data import DESCRIBE, folder
from tokenizer import Tokenizer


def write(path, *lines, mode="w"):
    """A metadata.jsonl of dicts (or raw strings) and a plain picture a.png beside it."""
    path.mkdir(exist_ok=True)
    Image.new("RGB", (20, 10), "red").save(path / "a.png")
    (path / "metadata.jsonl").write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def half_and_half(mode):
    """Left half dark red (or dark), right half white, 40 x 20 px, in a mode of Pillow's."""
    image = Image.new("RGB", (40, 20), "white")
    image.paste((120, 0, 0), (0, 0, 20, 20))
    if mode == "I;16":
        return Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16) * 257))
    return image.convert(mode)


@pytest.mark.parametrize("mode, suffix", [("RGB", "png"), ("L", "png"), ("RGBA", "png"), ("P", "gif"), ("CMYK", "jpg"), ("1", "png"),
                                          ("LA", "png"), ("I;16", "png"), ("I;16", "tiff"), ("RGB", "jpg"), ("RGB", "webp"), ("YCbCr", "tiff")])
def test_every_mode_becomes_rgb(tmp_path, mode, suffix):
    half_and_half(mode).save(tmp_path / f"x.{suffix}")
    pixels = folder.load_image(tmp_path / f"x.{suffix}", 16).float()
    assert pixels.shape == (3, 16, 16)
    assert pixels[:, :, 12:].mean() > 245, "the right half is white"
    assert pixels[1:, :, :4].mean() < 60 and pixels[:, :, :4].mean() < 80, "the left half is dark"


def test_damaged_metadata_is_reported_not_raised(tmp_path):
    """Flipped bytes anywhere give a picture or a ValueError that names the file."""
    exif = Image.Exif()
    exif[0x0112] = 6
    half_and_half("RGB").save(tmp_path / "x.jpg", exif=exif)
    whole, rng = (tmp_path / "x.jpg").read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for i in rng.integers(0, min(len(data), 120), 3):
            data[i] = rng.integers(256)
        (tmp_path / "x.jpg").write_bytes(data)
        try:
            assert folder.load_image(tmp_path / "x.jpg", 8).shape == (3, 8, 8)
        except ValueError as error:
            assert "x.jpg: " in str(error)


def test_transparent_is_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "x.png")
    assert (folder.load_image(tmp_path / "x.png", 8) == 255).all()
    palette = Image.new("P", (8, 8), 0)
    palette.save(tmp_path / "p.png", transparency=0)
    assert (folder.load_image(tmp_path / "p.png", 8) == 255).all()


def test_exif_rotation_and_centre_crop(tmp_path):
    image = Image.new("RGB", (60, 20), "white")  # the middle 20 px square: black above, white below, once turned upright
    image.paste("black", (20, 0, 30, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise for viewing
    image.save(tmp_path / "x.png", exif=exif)
    pixels = folder.load_image(tmp_path / "x.png", 20).float()
    assert pixels[:, :8].mean() < 20 and pixels[:, 12:].mean() > 235


def test_a_good_folder(tmp_path):
    path = write(tmp_path / "d", {"file_name": "a.png", "text": "a red picture"}, "",
                 {"file_name": "a.png", "text": "rot", "prompt": "colour?", "extra": 1})
    (train, lines), (test, _) = folder.read(path, 16, 0)
    assert train.texts == ["a red picture", "rot"] and train.prompts == [DESCRIBE, "colour?"] and test is None
    assert lines == [f"{path}/metadata.jsonl:1", f"{path}/metadata.jsonl:3"] and train.images.shape == (2, 3, 16, 16)


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    path = write(tmp_path / "d")
    (path / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"file_name": "a.png", "text": "caf\xc3\xa9"}\r\n{"file_name": "a.png", "text": "b"}\r\n')
    assert folder.read(path, 16, 0)[0][0].texts == ["café", "b"]


def test_the_held_out_tenth_depends_on_the_file_name_alone(tmp_path):
    names = [f"{i}.png" for i in range(300)]
    held = {name for name in names if folder.is_held_out(name, 0.1)}
    assert 15 <= len(held) <= 45
    assert not any(folder.is_held_out(name, 0) for name in names)
    path = write(tmp_path / "d", *({"file_name": n, "text": n} for n in names[:60]))
    for name in names[:60]:
        Image.new("RGB", (4, 4)).save(path / name)
    (train, _), (test, _) = folder.read(path, 8, 0.1)
    assert set(test.texts) == held & set(names[:60]) and set(train.texts) == set(names[:60]) - held


good = {"file_name": "a.png", "text": "fine"}


@pytest.mark.parametrize("line, message", [
    ("{", "not JSON"), ('["a.png", "x"]', "not an object"), ("3", "not an object"), ("[" * 100_000, "not JSON"),
    ({"text": "x"}, '"file_name" is missing'), ({"file_name": "a.png"}, '"text" is missing'),
    ({"file_name": "a.png", "text": 5}, '"text" must be a string'), ({"file_name": ["a.png"], "text": "x"}, '"file_name" must be a string'),
    ({"file_name": "a.png", "text": "x", "prompt": None}, '"prompt" must be a string'),
    ({"file_name": "a.png", "text": "  "}, '"text" is empty'), ({"file_name": "a.png", "text": "x", "prompt": ""}, '"prompt" is empty'),
    ({"file_name": "none.png", "text": "x"}, "no such image"), ({"file_name": "metadata.jsonl", "text": "x"}, "not an image"),
    ({"file_name": "cut.png", "text": "x"}, "broken image"), ({"file_name": "cut.jpg", "text": "x"}, "broken image"),
    ({"file_name": "empty.png", "text": "x"}, "not an image"), ({"file_name": "sub", "text": "x"}, "broken image"),
    ({"file_name": "../out.png", "text": "x"}, "leaves the folder"), ({"file_name": "/etc/passwd", "text": "x"}, "leaves the folder"),
    ({"file_name": "link.png", "text": "x"}, "leaves the folder"), ({"file_name": "a\0b", "text": "x"}, "leaves the folder"),
    ({"file_name": "x" * 5000, "text": "x"}, "name"), ({"file_name": "\ud800.png", "text": "x"}, ""),
])
def test_bad_lines_are_named(tmp_path, line, message):
    path = write(tmp_path / "d", good, line)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for name in ("cut.png", "cut.jpg", "../out.png"):
        noise.save(path / name)
    for name in ("cut.png", "cut.jpg"):
        (path / name).write_bytes((path / name).read_bytes()[:1500])
    (path / "empty.png").touch()
    (path / "sub").mkdir()
    (path / "link.png").symlink_to(path / "../out.png")
    with pytest.raises(ValueError) as error:
        folder.read(path, 16, 0)
    assert str(error.value).startswith(f"{path}/metadata.jsonl:2: ") and message in str(error.value)


def test_bytes_that_are_no_utf8(tmp_path):
    path = write(tmp_path / "d", good)
    with open(path / "metadata.jsonl", "ab") as file:
        file.write(b'\n{"file_name": "a.png", "text": "\xff"}')
    with pytest.raises(ValueError, match="metadata.jsonl:2: not UTF-8"):
        folder.read(path, 16, 0)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(ValueError, match="metadata.jsonl: cannot be read"):
        folder.read(tmp_path / "none", 16, 0)
    with pytest.raises(ValueError, match="no example left"):
        folder.read(write(tmp_path / "d"), 16, 0)


def test_captions_and_prompts_that_do_not_fit_are_named(tmp_path):
    path = write(tmp_path / "d", good, {"file_name": "a.png", "text": "one two three four"}, {"file_name": "a.png", "text": "x", "prompt": "a rather long prompt"})
    (train, lines), _ = folder.read(path, 16, 0)
    tokenizer = Tokenizer([])
    with pytest.raises(ValueError, match=r"metadata.jsonl:2: the caption is 18 tokens"):
        folder.check_lengths(train, lines, tokenizer, window=18, prompt_tokens=99)
    with pytest.raises(ValueError, match=r"metadata.jsonl:3: the prompt is 20 tokens"):
        folder.check_lengths(train, lines, tokenizer, window=19, prompt_tokens=19)
    folder.check_lengths(train, lines, tokenizer, window=19, prompt_tokens=20)
