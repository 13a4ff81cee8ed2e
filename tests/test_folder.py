"""Your own pictures: every mode and size is read, everything wrong is named by file and line."""
import json
import os
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from data import DESCRIBE, folder
from tokenizer import Tokenizer


def write(path, *lines):
    """A metadata.jsonl of dicts (or raw strings) and a plain picture a.png beside it."""
    path.mkdir(exist_ok=True)
    Image.new("RGB", (20, 10), "red").save(path / "a.png")
    lines = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


def half_and_half(mode):
    """Left half dark red (or dark), right half white, 40 x 20 px, in a mode of Pillow's."""
    image = Image.new("RGB", (40, 20), "white")
    image.paste((120, 0, 0), (0, 0, 20, 20))
    return image.convert(mode)


@pytest.mark.parametrize("mode, suffix", [
    ("RGB", "jpg"), ("L", "png"), ("RGBA", "png"), ("P", "gif"), ("CMYK", "jpg"), ("1", "png"),
    ("LA", "png"), ("RGB", "webp"), ("YCbCr", "tiff")])
def test_every_mode_becomes_rgb(tmp_path, mode, suffix):
    half_and_half(mode).save(tmp_path / f"x.{suffix}")
    pixels = folder.load_image(tmp_path / f"x.{suffix}", 16).float()
    assert pixels.shape == (3, 16, 16)
    assert pixels[:, :, 12:].mean() > 245, "the right half is white"
    assert pixels[1:, :, :4].mean() < 60 and pixels[:, :, :4].mean() < 80, "the left half is dark"


@pytest.mark.parametrize("dtype, values", [
    (np.float32, [0, 1]), (np.float32, [0, np.nan]), (np.int32, [0, 70_000]), (np.int32, [-5, 9])])
def test_values_of_no_known_scale_are_refused_not_read_as_black(tmp_path, dtype, values):
    Image.fromarray(np.array([values] * 2, dtype)).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="x.tiff"):
        folder.load_image(tmp_path / "x.tiff", 8)


def test_transparent_is_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "x.png")
    assert (folder.load_image(tmp_path / "x.png", 8) == 255).all()
    palette = Image.new("P", (8, 8), 0)
    palette.save(tmp_path / "p.png", transparency=0)
    assert (folder.load_image(tmp_path / "p.png", 8) == 255).all()


def test_exif_rotation_and_centre_crop(tmp_path):
    """The middle 20 px square: black above, white below, once turned upright."""
    image = Image.new("RGB", (60, 20), "white")
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
    assert train.texts == ["a red picture", "rot"] and train.prompts == [DESCRIBE, "colour?"]
    assert lines == [f"{path}/metadata.jsonl:1", f"{path}/metadata.jsonl:3"] and test is None
    assert train.images.shape == (2, 3, 16, 16)


def test_one_picture_is_on_one_side_whatever_it_is_called(tmp_path):
    """The held-out side hangs on the file's content: not on its name or its folder."""
    contents = [str(i).encode() for i in range(300)]
    assert 15 <= sum(folder.is_held_out(content, 0.1) for content in contents) <= 45
    assert not any(folder.is_held_out(content, 0) for content in contents)
    names = [(f"{start}{i}.png", i) for start in ("", "copy") for i in range(40)]
    path = write(tmp_path / "d", *(dict(file_name=name, text=str(i)) for name, i in names))
    for name, i in names:
        Image.new("RGB", (4, 4), (i, 0, 0)).save(path / name)
    (train, _), (test, _) = folder.read(path, 8, 0.3)
    assert len(train.texts) + len(test.texts) == 80 and not set(train.texts) & set(test.texts)
    assert 4 <= len(set(test.texts)) <= 20
    path.rename(tmp_path / "moved")
    assert folder.read(tmp_path / "moved", 8, 0.3)[1][0].texts == test.texts


good = {"file_name": "a.png", "text": "fine"}


@pytest.mark.parametrize("line, named", [
    ("{", "Expecting"), ('["a.png", "x"]', "metadata.jsonl with"),
    ({"file_name": "a.png", "text": 5}, '"text"'), ({"file_name": "a.png", "text": "  "}, '"text"'),
    ({"file_name": "a.png", "text": "x", "prompt": ""}, '"prompt"'),
    ({"file_name": "none.png", "text": "x"}, "none.png"),
    ({"file_name": "metadata.jsonl", "text": "x"}, "convert it to JPEG"),
    ({"file_name": "cut.png", "text": "x"}, "cut.png"),
    ('{"file_name": "a.png", "text": "x", "text": "y"}', "twice"),
    ('{"extra": 1, "file_name": "a.png", "text": "x", "extra": 1}', "twice"),
], ids=str)
def test_bad_lines_are_named(tmp_path, line, named):
    path = write(tmp_path / "d", good, line)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path / "cut.png")
    (path / "cut.png").write_bytes((path / "cut.png").read_bytes()[:1500])
    with pytest.raises(ValueError) as error:
        folder.read(path, 16, 0)
    assert str(error.value).startswith(f"{path}/metadata.jsonl:2: ") and named in str(error.value)


def test_folders_without_examples(tmp_path):
    path = write(tmp_path / "d")
    with pytest.raises(ValueError, match=f"{path}.*metadata.jsonl.*file_name"):
        folder.read(path, 16, 0)
    write(path, good)
    with pytest.raises(ValueError, match="1 held out .--holdout"):
        folder.read(path, 16, 0.9999)
    (path / "metadata.jsonl").unlink()
    for folder_without in (path, tmp_path / "none"):
        with pytest.raises(ValueError, match=f"{folder_without}: it holds no table"):
            folder.read(folder_without, 16, 0)


def test_a_metadata_csv(tmp_path):
    path = write(tmp_path / "d", good)
    (path / "metadata.csv").write_bytes(
        '\ufefffile_name,text,prompt,\r\na.png,"red, and wide",,7\r\n\r\n'
        'a.png,"two\nlines","colour?",8\r\n'.encode())
    (path / "metadata.jsonl").unlink()
    (train, lines), _ = folder.read(path, 16, 0)
    assert train.texts == ["red, and wide", "two\nlines"]
    assert train.prompts == [DESCRIBE, "colour?"]
    assert lines == [f"{path}/metadata.csv:2", f"{path}/metadata.csv:4"]


def test_captions_and_prompts_that_do_not_fit_are_named(tmp_path):
    path = write(tmp_path / "d", good, {"file_name": "a.png", "text": "one two three four"},
                 {"file_name": "a.png", "text": "x", "prompt": "a rather long prompt"})
    (train, lines), _ = folder.read(path, 16, 0)
    tokenizer = Tokenizer([])
    with pytest.raises(ValueError, match=r"metadata.jsonl:2: the caption is 18 tokens"):
        folder.check_lengths(train, lines, tokenizer, window=18, prompt_tokens=99)
    with pytest.raises(ValueError, match=r"metadata.jsonl:3: the prompt is 20 tokens"):
        folder.check_lengths(train, lines, tokenizer, window=19, prompt_tokens=19)
    folder.check_lengths(train, lines, tokenizer, window=19, prompt_tokens=20)


# ---------------------------------------------------------------- what would be read wrongly

@pytest.mark.parametrize("content, line, named", [
    ("file_name;text\na.png;x\n", 1, "file_name;text"),
    ("file_name,text\na.png,red, and wide\n", 2, "more cells"),
    ("file_name,text\na.png,x\nnone.png,x\n", 3, "none.png"),
    ("file_name,text\na.png,\udcff\n", 2, "utf-8"),
    ('file_name,text\na.png,fine\nb.png,"a bird\na.png,a tree"\nb.png,x\n', 3, "a.png"),
    ('text,file_name\nfine,a.png\n"a bird,b.png\na tree",a.png\n', 3, "b.png"),
    ('file_name,text\na.png,fine\n\nb.png,"7 inch nail\na.png,x\n', 4, "quote"),
    ('file_name,text\na.png,"the \\"big\\" one"\n', 2, "quote"),
    ('file_name,text\na.png,"one" two\n', 2, "quote"),
    ("file_name,text,text\na.png,one,two\n", 1, "'text', 'text'"),
    ("file_name, text\na.png,x\n", 1, "' text'"), ("file_name,text\t\na.png,x\n", 1, r"'text\t'"),
    ("\ufeff\ufefffile_name,text\na.png,x\n", 1, r"\ufefffile_name"), ("", 1, "[]"),
])
def test_a_csv_is_read_strictly(tmp_path, content, line, named):
    path = write(tmp_path / "d")
    Image.new("RGB", (8, 8)).save(path / "b.png")
    (path / "metadata.jsonl").unlink()
    (path / "metadata.csv").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError) as error:
        folder.read(path, 16, 0)
    said = str(error.value)
    assert said.startswith(f"{path}/metadata.csv:{line}: ") and named in said


def test_two_tables_in_one_folder_are_refused_and_what_was_read_is_said(tmp_path, capsys):
    path = write(tmp_path / "d", good, good | {"text": "again"})
    (path / "more").mkdir()
    for name in ("b.png", "more/c.JPG"):
        Image.new("RGB", (8, 8)).save(path / name)
    folder.read(path, 16, 0)
    assert capsys.readouterr().out == (
        "2 captions of 1 pictures; 2 pictures of the folder have none\n")
    (path / "metadata.csv").write_text("file_name,text\nb.png,x\n")
    with pytest.raises(ValueError, match=f"{path}: it holds two tables"):
        folder.read(path, 16, 0)


@pytest.mark.parametrize("top, dark", [(65535, False), (40_000, False), (4095, True), (0, True)])
@pytest.mark.parametrize("dtype, suffix", [
    (np.uint16, "png"), (np.uint16, "tiff"), (np.int32, "tiff")])
def test_wide_greys_are_on_one_scale(tmp_path, capsys, top, dark, dtype, suffix):
    """The same grey is the same whatever else is in the picture; what is nearly black is named."""
    pixels = {}
    for brightest in (top, top // 2):
        values = np.full((16, 16), top // 2, dtype)
        values[:, 15] = brightest
        Image.fromarray(values).save(tmp_path / f"x.{suffix}")
        pixels[brightest] = folder.load_image(tmp_path / f"x.{suffix}", 16)
        said = capsys.readouterr().err
        assert (f"x.{suffix}: nearly black" in said) == (dark or brightest < 4096)
    assert all(found[0, 8, 8] == round(top // 2 / 257) for found in pixels.values())
    assert pixels[top][0, 8, 15] == round(top / 257)


def chunk(name, content, check=None):
    """Of a PNG."""
    check = zlib.crc32(name + content) if check is None else check
    return len(content).to_bytes(4, "big") + name + content + check.to_bytes(4, "big")


LARGE = zlib.compress(bytes(3_000_000))
ODD = {"profile": chunk(b"iCCP", b"p\0\0" + LARGE), "text": chunk(b"zTXt", b"k\0\0" + LARGE),
       "Unicode": chunk(b"iTXt", b"k\0\1\0\0\0" + LARGE), "check sum": chunk(b"tEXt", b"k\0v", 7),
       "EXIF": chunk(b"eXIf", b"this is no EXIF")}


@pytest.mark.parametrize("where", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("odd", ODD)
def test_what_comes_with_a_picture_does_not_make_it_bad(tmp_path, odd, where):
    """It does not make a bad one good, either: cut, it is refused."""
    path = tmp_path / "x.png"
    values = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(values).save(path)
    before, after = path.read_bytes().split(where)
    content = before[:-4] + ODD[odd] + before[-4:] + where + after
    path.write_bytes(content)
    assert torch.equal(folder.load_image(path, 32), torch.from_numpy(values).permute(2, 0, 1))
    path.write_bytes(content[:content.index(b"IDAT") + 1000])
    with pytest.raises(ValueError, match="x.png: no image"):
        folder.load_image(path, 32)


def test_an_exif_that_is_rubbish(tmp_path):
    for suffix in ("webp", "jpg"):
        Image.new("RGB", (8, 8), "white").save(tmp_path / f"x.{suffix}", exif=b"Exif\0\0rubbish")
        assert (folder.load_image(tmp_path / f"x.{suffix}", 8) > 250).all()


def test_only_regular_files_of_the_formats_that_are_meant(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "x.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    for name in ("pipe.png", "x.eps"):
        with pytest.raises(ValueError, match=name):
            folder.load_image(tmp_path / name, 8)


def test_a_large_photograph_is_read_no_larger_than_needed(tmp_path, monkeypatch):
    values = np.linspace(0, 255, 1600).astype(np.uint8)[None, :, None].repeat(1200, 0).repeat(3, 2)
    Image.fromarray(values).save(tmp_path / "x.jpg", quality=95)
    sizes = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load_end", lambda image: sizes.append(image.size))
    pixels = folder.load_image(tmp_path / "x.jpg", 48)[0].float()
    assert max(sizes[0]) <= 400
    wanted = torch.linspace(255 / 8, 255 * 7 / 8, 49)  # the middle square
    assert (pixels - (wanted[1:] + wanted[:-1]) / 2).abs().max() < 3


def test_a_text_that_no_tokenizer_makes_fit_is_refused_before_one_is_trained(tmp_path):
    path = write(tmp_path / "d", good, good | {"text": "é" * 1600})
    (train, lines), _ = folder.read(path, 16, 0)
    with pytest.raises(ValueError, match="metadata.jsonl:2: the caption is"):
        folder.check_lengths(train, lines, None, window=48, prompt_tokens=64)
    train.texts[1] = "x " * 40  # may fit, may not
    folder.check_lengths(train, lines, None, window=48, prompt_tokens=64)
