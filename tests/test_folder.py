"""Your own pictures: every mode and size is read, everything wrong is named by file and line."""
import json

import numpy as np
import pytest
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


@pytest.mark.parametrize("dtype, high, full, suffix", [
    (np.uint16, 40_000, 65_535, "png"), (np.uint16, 4_000, 4_095, "tiff"),
    (np.int32, 200, 255, "tiff"), (np.int32, 65_535, 65_535, "tiff")])
def test_wide_greys_are_scaled_by_their_bits(tmp_path, dtype, high, full, suffix):
    values = np.array([high / 2, high]).astype(dtype).repeat(4)[None].repeat(8, 0)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    pixels = folder.load_image(tmp_path / f"x.{suffix}", 8)
    assert pixels[0, 4, [1, 6]] / 255 == pytest.approx([high / 2 / full, high / full], abs=0.01)


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
        with pytest.raises(ValueError, match=f"{folder_without}: no metadata.jsonl"):
            folder.read(folder_without, 16, 0)


def test_a_metadata_csv_is_read_where_there_is_no_jsonl(tmp_path):
    path = write(tmp_path / "d", good)
    (path / "metadata.csv").write_bytes(
        '\ufefffile_name,text,prompt,\r\na.png,"red, and wide",,7\r\n\r\n'
        'a.png,"two\nlines","colour?",8\r\n'.encode())
    assert folder.read(path, 16, 0)[0][0].texts == ["fine"], "metadata.jsonl comes first"
    (path / "metadata.jsonl").unlink()
    (train, lines), _ = folder.read(path, 16, 0)
    assert train.texts == ["red, and wide", "two\nlines"]
    assert train.prompts == [DESCRIBE, "colour?"]
    assert lines == [f"{path}/metadata.csv:2", f"{path}/metadata.csv:5"]


@pytest.mark.parametrize("content, line", [
    (b"file_name;text\na.png;x\n", 2), (b"file_name,text\na.png,red, and wide\n", 2),
    (b"file_name,text\na.png,x\nnone.png,x\n", 3), (b"file_name,text\na.png,\xff\n", 2)],
    ids=range(4))
def test_bad_csv_is_named_by_line(tmp_path, content, line):
    path = write(tmp_path / "d")
    (path / "metadata.jsonl").unlink()
    (path / "metadata.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}/metadata.csv:{line}: "):
        folder.read(path, 16, 0)


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
