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
    lines = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


def half_and_half(mode):
    """Left half dark red (or dark), right half white, 40 x 20 px, in a mode of Pillow's."""
    image = Image.new("RGB", (40, 20), "white")
    image.paste((120, 0, 0), (0, 0, 20, 20))
    if mode == "I;16":
        return Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16) * 257))
    return image.convert(mode)


@pytest.mark.parametrize("mode, suffix", [
    ("RGB", "png"), ("L", "png"), ("RGBA", "png"), ("P", "gif"), ("CMYK", "jpg"), ("1", "png"),
    ("LA", "png"), ("I;16", "png"), ("I;16", "tiff"), ("RGB", "jpg"), ("RGB", "webp"),
    ("YCbCr", "tiff")])
def test_every_mode_becomes_rgb(tmp_path, mode, suffix):
    half_and_half(mode).save(tmp_path / f"x.{suffix}")
    pixels = folder.load_image(tmp_path / f"x.{suffix}", 16).float()
    assert pixels.shape == (3, 16, 16)
    assert pixels[:, :, 12:].mean() > 245, "the right half is white"
    assert pixels[1:, :, :4].mean() < 60 and pixels[:, :, :4].mean() < 80, "the left half is dark"


@pytest.mark.parametrize("dtype, top", [
    (np.float32, 1), (np.float32, 255), (np.float32, 65535), (np.float32, 0.4), (np.uint16, 65535),
    (np.uint16, 4095), (np.uint16, 255), (np.int32, 255), (np.int32, 65535)])
def test_wide_greys_are_scaled_by_the_values_they_hold(tmp_path, dtype, top):
    """Black on the left, half the highest value in the middle, the highest on the right."""
    values = np.array([0, top / 2, top]).astype(dtype).repeat(8)[None].repeat(8, 0)
    Image.fromarray(values).save(tmp_path / "x.tiff")
    pixels = folder.load_image(tmp_path / "x.tiff", 8)
    full = {0.4: 102}.get(top, 255)  # of fractions the highest possible is 1
    middle = pixels[0, 4, [0, 4, 7]]
    assert middle.tolist() == pytest.approx([full // 2] * 3, abs=2), "the middle square"
    Image.fromarray(np.ascontiguousarray(values[:, -8:])).save(tmp_path / "y.tiff")
    pixels = folder.load_image(tmp_path / "y.tiff", 8)
    assert pixels.unique().tolist() == pytest.approx([full], abs=1)
    Image.fromarray(np.ascontiguousarray(values[:, :8])).save(tmp_path / "z.tiff")
    assert not folder.load_image(tmp_path / "z.tiff", 8).any(), "what is black stays black"


@pytest.mark.parametrize("dtype, values", [
    (np.float32, [0, 1.5]), (np.float32, [-1, 1]), (np.float32, [0, np.nan]),
    (np.float32, [0, np.inf]), (np.float32, [0, 1e6]), (np.float32, [0, 300]),
    (np.int32, [0, 70_000]), (np.int32, [-5, 9]), (np.uint16, [0, 5])])
def test_values_of_no_known_scale_are_refused_not_read_as_black(tmp_path, dtype, values):
    Image.fromarray(np.array([values] * 2, dtype)).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="x.tiff.*convert it to 8 bits"):
        folder.load_image(tmp_path / "x.tiff", 8)


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
    # the middle 20 px square: black above, white below, once turned upright
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


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    path = write(tmp_path / "d")
    (path / "metadata.jsonl").write_bytes(
        b'\xef\xbb\xbf{"file_name": "a.png", "text": "caf\xc3\xa9"}\r\n'
        b'{"file_name": "a.png", "text": "b"}\r\n')
    assert folder.read(path, 16, 0)[0][0].texts == ["café", "b"]


def test_one_picture_is_on_one_side_whatever_it_is_called(tmp_path):
    """The held-out side hangs on the file's content: not on its name, its spelling, its order, its
    folder, nor on a link or copy."""
    contents = [str(i).encode() for i in range(300)]
    assert 15 <= sum(folder.is_held_out(content, 0.1) for content in contents) <= 45
    assert not any(folder.is_held_out(content, 0) for content in contents)
    path = write(tmp_path / "d")
    (path / "sub").mkdir()
    for i in range(40):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(path / f"{i}.png")
        (path / f"link{i}.png").symlink_to(f"{i}.png")
        (path / "sub" / f"copy{i}.png").write_bytes((path / f"{i}.png").read_bytes())
    spellings = ("{}.png", "./{}.png", "sub/../{}.png", ".//{}.png", "link{}.png", "sub/copy{}.png")
    lines = [json.dumps({"file_name": name.format(i), "text": str(i)})
             for name in spellings for i in range(40)]
    (path / "metadata.jsonl").write_text("\n".join(lines))
    (train, _), (test, _) = folder.read(path, 8, 0.3)
    assert len(train.texts) + len(test.texts) == 240 and not set(train.texts) & set(test.texts)
    assert 4 <= len(set(test.texts)) <= 20
    path.rename(tmp_path / "moved")
    assert folder.read(tmp_path / "moved", 8, 0.3)[1][0].texts == test.texts


def test_links_are_followed(tmp_path):
    path = write(tmp_path / "d", {"file_name": "link.png", "text": "fine"},
                 {"file_name": "there/x.png", "text": "fine"})
    (tmp_path / "else").mkdir()
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "else" / "x.png")
    (path / "link.png").symlink_to(tmp_path / "else" / "x.png")
    (path / "there").symlink_to(tmp_path / "else")
    assert (folder.read(path, 8, 0)[0][0].images[:, 2] == 255).all()
    write(path, {"file_name": str(path / "a.png"), "text": "by its whole path"})
    assert folder.read(path, 8, 0)[0][0]


good = {"file_name": "a.png", "text": "fine"}


@pytest.mark.parametrize("line, message", [
    ("{", "not JSON"), ('["a.png", "x"]', "not an object"), ("3", "not an object"),
    ("[" * 100_000, "not JSON"), ({"text": "x"}, '"file_name" is missing'),
    ({"file_name": "a.png"}, '"text" is missing'),
    ({"file_name": "a.png", "text": 5}, '"text" must be a string'),
    ({"file_name": ["a.png"], "text": "x"}, '"file_name" must be a string'),
    ({"file_name": "a.png", "text": "x", "prompt": None}, '"prompt" must be a string'),
    ({"file_name": "a.png", "text": "  "}, '"text" is empty'),
    ({"file_name": "a.png", "text": "x", "prompt": ""}, '"prompt" is empty'),
    ({"file_name": "none.png", "text": "x"}, "no such image"),
    ({"file_name": "metadata.jsonl", "text": "x"}, "not an image"),
    ({"file_name": "cut.png", "text": "x"}, "broken image"),
    ({"file_name": "cut.jpg", "text": "x"}, "broken image"),
    ({"file_name": "empty.png", "text": "x"}, "not an image"),
    ({"file_name": "sub", "text": "x"}, "broken image"),
    ({"file_name": "../out.png", "text": "x"}, "leaves the folder"),
    ({"file_name": "/etc/passwd", "text": "x"}, "leaves the folder"),
    ({"file_name": "sub/../../out.png", "text": "x"}, "leaves the folder"),
    ({"file_name": "a\0b", "text": "x"}, "leaves the folder"),
    ({"file_name": "loop.png", "text": "x"}, "broken image"),
    ({"file_name": "dangling.png", "text": "x"}, "no such image"),
    ({"file_name": "x" * 5000, "text": "x"}, "name"),
    ({"file_name": "\ud800.png", "text": "x"}, ""),
    ({"file_name": "\udce9.png", "text": "x"}, "no such image"),
    ({"file_name": "photo.heic", "text": "x"}, "convert it to JPEG or PNG"),
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
    (path / "loop.png").symlink_to("loop.png")
    (path / "dangling.png").symlink_to("none.png")
    (path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
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
    def said(path, share=0):
        with pytest.raises(ValueError) as error:
            folder.read(path, 16, share)
        assert str(path) in str(error.value)
        return str(error.value)
    assert "cannot be read as a folder (No such file" in said(tmp_path / "none")
    path = write(tmp_path / "d")
    assert "no example in it; wanted: a metadata.jsonl" in said(path)
    assert "--holdout" not in said(path)
    assert "Not a directory" in said(path / "a.png")
    write(path, good)
    for words in ("all 1 examples are held out", "--holdout 0"):
        assert words in said(path, 0.9999)
    (path / "metadata.jsonl").rename(path / "captions.txt")
    for name in ("b.png", "c.jpg"):
        (path / name).touch()
    (path / "train").mkdir()
    for words in ("2 .png", "1 .jpg", "1 .txt", "1 folders", "wanted: a metadata.jsonl"):
        assert words in said(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="but nothing; wanted"):
        folder.read(tmp_path / "empty", 16, 0)


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


@pytest.mark.parametrize("content, message", [
    (b"", "1: the columns are none; wanted"),
    (b"file_name;text\na.png;x\n", "1: the columns are file_name;text; wanted"),
    (b"file_name,text\n", "no example in it"),
    (b"file_name,text\na.png,x\na.png\n", "3: not as many cells"),
    (b"file_name,text\na.png,red, and wide\n", "2: not as many cells as the 2 columns"),
    (b"file_name,text\na.png,\n", '2: "text" is empty'),
    (b"file_name,text\na.png,x\nnone.png,x\n", "3: "),
    (b"file_name,text\na.png,\xff\n", "2: not UTF-8"),
    (b"file_name,text\na.png," + b"x" * 200_000, ": field larger"),
    (b"file_name,text\n../a.png,x\n", "2: "),
])
def test_bad_csv_is_named_by_line(tmp_path, content, message):
    path = write(tmp_path / "d")
    (path / "metadata.jsonl").unlink()
    (path / "metadata.csv").write_bytes(content)
    with pytest.raises(ValueError) as error:
        folder.read(path, 16, 0)
    error = str(error.value)
    assert error.startswith(f"{path}/metadata.csv:") and message in error, error


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
