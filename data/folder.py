"""Your own pictures: a folder with image files and a metadata.jsonl of {"file_name", "text",
"prompt": optional} lines, or a metadata.csv with these columns (the Hugging Face ImageFolder
convention). Everything wrong with it is found before training starts, by file and line."""
import csv
import hashlib
import io
import json
import os
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from data import DESCRIBE, Split

WANTED = ('wanted: a metadata.jsonl with a line like {"file_name": "a.png", "text": "a caption"} '
          "for each picture, or a metadata.csv with the columns file_name,text")
# brands, in bytes 8 to 12 of the file
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class UnknownScale(ValueError):
    """A picture's values fit no scale of greys."""


def to_8_bits(image):
    """A picture with one wide channel (16 or 32 bits, or floating point) -> greys of 8 bits, scaled
    by the values it holds: whole numbers by their bits, fractions from 0 to 1, 255 or 65535. Raises
    UnknownScale where they fit none of these."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    fits = 0 <= low and high <= 65535  # not a number: it does not
    if fits and values.dtype.kind == "f":
        full = next(scale for scale in (1, 255, 65535) if high <= scale)
    elif fits:
        full = 2 ** max(8, int(high).bit_length()) - 1
    if not fits or 0 < high < full / 32:  # nearly black if read so: it is something else
        raise UnknownScale(f"its values, {low:g} to {high:g}, are no scale of greys known here "
                           "(0 to 1, 255 or 65535): convert it to 8 bits")
    return Image.fromarray((values * (255 / full)).round().astype(np.uint8))


def load_image(path, size_px):
    """An image file of any size and mode -> (3, size_px, size_px) uint8: upright, on white,
    centre-cropped, resized.

    Raises ValueError naming the file if it is missing, broken or no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
            with Image.open(path) as image:
                image = ImageOps.exif_transpose(image)
                if image.mode[0] in "IF":  # plain conversion would clip these, to white or black
                    image = to_8_bits(image)
                if image.has_transparency_data:
                    white = Image.new("RGBA", image.size, "white")
                    image = Image.alpha_composite(white, image.convert("RGBA"))
                image = ImageOps.fit(image.convert("RGB"), (size_px, size_px))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such image file") from None
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            heic = file.read(12)[8:] in HEIC
        words = ("HEIC, which Pillow does not read: convert it to JPEG or PNG" if heic else
                 "not an image that Pillow can read")
        raise ValueError(f"{path}: {words}") from None
    except UnknownScale as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # Pillow's decoders fail in many ways
        raise ValueError(f"{path}: broken image ({error})") from None
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def is_held_out(content, share):
    """Whether a picture is held out, by the content (bytes) of its file: not by its name, of which
    one file may have several."""
    digest = hashlib.sha256(content).digest()
    return int.from_bytes(digest[:8], "big") / 2 ** 64 < share


def find_metadata(folder):
    """The folder's metadata file. Raises ValueError that says what is there if there is none."""
    for name in ("metadata.jsonl", "metadata.csv"):
        if (folder / name).exists():
            return folder / name
    try:
        there = [path.suffix or "/" * path.is_dir() or path.name for path in folder.iterdir()]
    except OSError as error:
        message = f"{folder}: cannot be read as a folder ({error.strerror}); {WANTED}"
        raise ValueError(message) from None
    there = ", ".join(f"{n} {'folders' if kind == '/' else kind}"
                      for kind, n in Counter(there).most_common(5))
    raise ValueError(f"{folder}: no metadata.jsonl or metadata.csv in it, "
                     f"but {there or 'nothing'}; {WANTED}")


def parse_jsonl(content, metadata):
    """metadata.jsonl (bytes) -> (line number, dict) of each line. Raises ValueError naming file and
    line."""
    entries = []
    for number, raw in enumerate(content.splitlines(), 1):
        if not raw.strip():
            continue
        try:
            entry = json.loads(raw.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise ValueError(f"{metadata}:{number}: not UTF-8") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{metadata}:{number}: not JSON ({error})") from None
        if not isinstance(entry, dict):
            raise ValueError(f"{metadata}:{number}: not an object like "
                             '{"file_name": "a.png", "text": "a caption"}')
        entries.append((number, entry))
    return entries


def parse_csv(content, metadata):
    """metadata.csv (bytes) -> (line number, dict) of each row. Raises ValueError naming file and
    line."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{metadata}:{line}: not UTF-8") from None
    reader, rows = csv.DictReader(io.StringIO(text, newline="")), []
    try:
        if not {"file_name", "text"} <= set(reader.fieldnames or ()):
            found = ", ".join(reader.fieldnames or ["none"])
            raise ValueError(f"the columns are {found}; {WANTED}")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"not as many cells as the {len(reader.fieldnames)} columns; "
                                 "a text with a comma needs quotes")
            if row.get("prompt") == "":
                del row["prompt"]
            rows.append((reader.line_num, row))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{metadata}:{max(1, reader.line_num)}: {error}") from None
    return rows


def check(entry, folder):
    """An entry of the metadata -> (path, text, prompt). Raises ValueError saying what is wrong."""
    entry = {"prompt": DESCRIBE, **entry}
    for key in ("file_name", "text", "prompt"):
        if key not in entry:
            raise ValueError(f'"{key}" is missing')
        if not isinstance(entry[key], str):
            raise ValueError(f'"{key}" must be a string, not {json.dumps(entry[key])[:40]}')
        if not entry[key].strip():
            raise ValueError(f'"{key}" is empty')
    # as written: a picture may be a link to elsewhere
    path = Path(os.path.abspath(folder / entry["file_name"]))
    if "\0" in entry["file_name"] or not path.is_relative_to(os.path.abspath(folder)):
        raise ValueError(f'"file_name" {entry["file_name"]!r} leaves the folder')
    return folder / entry["file_name"], entry["text"], entry["prompt"]


def read(folder, size_px, holdout):
    """The folder's examples -> (train, held_out) `Split`s and, for each, "file:line" of every
    example.

    Raises ValueError naming file and line."""
    folder = Path(folder)
    metadata = find_metadata(folder)
    try:
        content = metadata.read_bytes()
    except OSError as error:
        raise ValueError(f"{metadata}: cannot be read ({error.strerror})") from None
    entries = (parse_csv if metadata.suffix == ".csv" else parse_jsonl)(content, metadata)
    if not entries:
        raise ValueError(f"{metadata}: no example in it; {WANTED}")
    sides = {False: [], True: []}  # held out? -> (image, prompt, text, where)
    for number, entry in entries:
        where = f"{metadata}:{number}"
        try:
            path, text, prompt = check(entry, folder)
            image = load_image(path, size_px)
            side = is_held_out(path.read_bytes(), holdout)
        except (ValueError, OSError) as error:
            raise ValueError(f"{where}: {error}") from None
        sides[side].append((image, prompt, text, where))
    if not sides[False]:
        raise ValueError(f"{metadata}: all {len(sides[True])} examples are held out, none is left "
                         "to train on; --holdout 0 holds none out")
    return [split(side) for side in (sides[False], sides[True])]


def split(side):
    if not side:
        return None, []
    images, prompts, texts, where = zip(*side)
    return Split(torch.stack(images), list(prompts), list(texts)), list(where)


def check_lengths(split, where, tokenizer, window, prompt_tokens=64):
    """Raises ValueError naming file and line of a caption or prompt that does not fit."""
    for text, prompt, place in zip(split.texts, split.prompts, where):
        length = len(tokenizer.encode(text))
        if length >= window:
            raise ValueError(f"{place}: the caption is {length} tokens long; {window - 1} and the "
                             "EOS fit the window: shorten it (--preset small has the longest "
                             "window)")
        length = len(tokenizer.encode(prompt))
        if length > prompt_tokens:
            raise ValueError(f"{place}: the prompt is {length} tokens long; "
                             f"at most {prompt_tokens} fit: shorten it")
