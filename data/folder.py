"""Your own pictures: a folder with image files and a metadata.jsonl of {"file_name", "text",
"prompt": optional} lines, or a metadata.csv with these columns (the Hugging Face ImageFolder
convention). Everything wrong with it is found before training starts, by file and line."""
import contextlib
import csv
import hashlib
import json
import stat
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, PngImagePlugin
from tqdm import tqdm

from data import DESCRIBE, Split

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # Pillow can do more: start programs
PngImagePlugin.MAX_TEXT_CHUNK = 2 ** 26  # a profile or text of 2 MB does not make a picture bad
WANTED = ('wanted: a metadata.jsonl with a line like {"file_name": "a.png", "text": "a caption"} '
          "for each picture, or a metadata.csv with the columns file_name,text")


def to_8_bits(image, path):
    """A picture with one wide channel -> greys of 8 bits, on one scale for all pictures: 65535 is
    white. Raises ValueError for fractions, and where the values are no greys of up to 16 bits."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" or low < 0 or high > 65535:
        raise ValueError(f"its values, {low:g} to {high:g}, are not whole numbers of 16 bits")
    if high < 4096:
        print(f"warning: {path}: nearly black: at most {high} of 65535", file=sys.stderr)
    return Image.fromarray((values / 257).round().astype(np.uint8))


def load_image(path, size_px):
    """An image file of any size and mode -> (3, size_px, size_px) uint8: upright, on white,
    centre-cropped, resized.

    Raises OSError if it is missing, ValueError naming the file if it is broken or no image."""
    if not stat.S_ISREG(Path(path).stat().st_mode):  # a pipe would be waited for
        raise ValueError(f"{path}: no regular file")
    try:
        ImageFile.LOAD_TRUNCATED_IMAGES = True  # of the header: texts with a wrong check sum
        with Image.open(path, formats=FORMATS) as image:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            image.draft("RGB", (2 * size_px, 2 * size_px))  # of a JPEG, no more than is needed
            image.load()
            with contextlib.suppress(Exception):  # where the EXIF is broken, the picture is not
                image = ImageOps.exif_transpose(image)
            if image.mode[0] in "IF":  # plain conversion would clip these, to white or black
                image = to_8_bits(image, path)
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            image = ImageOps.fit(image.convert("RGB"), (size_px, size_px))
    except Exception as error:  # Pillow's decoders fail in many ways
        raise ValueError(f"{path}: no image that can be read ({error}); convert it to JPEG or "
                         "PNG") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def is_held_out(content, share):
    """Whether a picture is held out, by the content (bytes) of its file: not by its name, of which
    one file may have several."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2 ** 64 < share


def once(pairs):
    """What a line of JSON holds -> dict. Raises ValueError for a key that is given twice."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"a key is given twice: {', '.join(key for key, _ in pairs)}")
    return dict(pairs)


def pictures_in(folder):
    """The files that look like pictures, in its folders, too."""
    formats = Image.registered_extensions()  # by suffix
    return [path for path in Path(folder).rglob("*") if formats.get(path.suffix.lower()) in FORMATS]


def parse(metadata):
    """The path of a metadata.jsonl or metadata.csv -> (line where it begins, dict) of each example.
    Raises ValueError naming file and line."""
    number = start = 0  # the line that was read last; where the row of a CSV begins

    def lines():
        nonlocal number
        for number, line in enumerate(metadata.read_bytes().splitlines(keepends=True), 1):
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")

    def rows():
        nonlocal start
        reader, start = csv.reader(lines(), strict=True), 1  # strict: a quote must be closed
        names = next(reader, [])
        if len({*names}) < len(names) or not {"file_name", "text"} <= {*names}:
            raise ValueError(f"its columns are {names}; {WANTED}")
        pictures = {path.name for path in pictures_in(metadata.parent)}
        start = number + 1
        for row in reader:
            if len(row) > len(names):
                raise ValueError("more cells than columns; a text with a comma needs quotes")
            long = " ".join(cell for cell in row if len(cell.splitlines()) > 1)
            if found := [name for name in pictures if name in long]:
                raise ValueError(f"a quote takes the line of {found[0]} into its text")
            if row:
                yield {name: cell for name, cell in zip(names, row) if cell}
            start = number + 1
    try:
        if metadata.suffix == ".csv":
            return [(start, row) for row in rows()]
        return [(number, json.loads(line, object_pairs_hook=once))
                for line in lines() if line.strip()]
    except (ValueError, csv.Error) as error:
        words = getattr(error, "msg", error)  # JSON's, without a line number of its own
        hint = "; a quote must be closed, and doubled inside quotes" * isinstance(error, csv.Error)
        raise ValueError(f"{metadata}:{start or number}: {words}{hint}") from error


def check(entry):
    """An entry of the metadata -> file_name, text, prompt. Raises ValueError saying what is
    wrong."""
    if not isinstance(entry, dict):
        raise ValueError(WANTED)
    entry = {"prompt": DESCRIBE, **entry}
    for key in ("file_name", "text", "prompt"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise ValueError(f'"{key}" must be a string that is not empty, not '
                             f"{entry.get(key)!r:.40}")
    return entry["file_name"], entry["text"], entry["prompt"]


def read(folder, size_px, holdout):
    """The folder's examples -> (train, held_out) `Split`s, None of none, and, for each,
    "file:line" of every example. Raises ValueError naming file and line."""
    folder = Path(folder)
    there = [path for path in (folder / "metadata.jsonl", folder / "metadata.csv") if path.exists()]
    if len(there) != 1:
        raise ValueError(f"{folder}: it holds {'two tables' if there else 'no table'}; {WANTED}")
    metadata, used = there[0], set()
    sides = {False: [], True: []}  # held out? -> (image, prompt, text, where)
    for number, entry in tqdm(parse(metadata), desc="pictures", leave=False, disable=None):
        where = f"{metadata}:{number}"
        try:
            name, text, prompt = check(entry)
            path = folder / name
            image, side = load_image(path, size_px), is_held_out(path.read_bytes(), holdout)
            used.add(path.resolve())
        except (ValueError, OSError) as error:
            raise ValueError(f"{where}: {error}") from error
        sides[side].append((image, prompt, text, where))
    if not sides[False]:
        raise ValueError(f"{metadata}: no example to train on, {len(sides[True])} held out "
                         f"(--holdout); {WANTED}")
    others = {path.resolve() for path in pictures_in(folder)} - used
    n = len(sides[False]) + len(sides[True])
    print(f"{n} captions of {len(used)} pictures; {len(others)} pictures of the folder have none")
    return [split(side) for side in (sides[False], sides[True])]


def split(side):
    if not side:
        return None, []
    images, prompts, texts, where = zip(*side)
    return Split(torch.stack(images), list(prompts), list(texts)), list(where)


def check_lengths(split, where, tokenizer, window, prompt_tokens):
    """Raises ValueError naming the place of a caption or prompt that does not fit. Without a
    tokenizer, before one is trained on them for minutes: 64 bytes count as a token."""
    for text, prompt, place in zip(split.texts, split.prompts, where):
        for what, words, most in (("caption", text, window - 1), ("prompt", prompt, prompt_tokens)):
            length = (len(tokenizer.encode(words)) if tokenizer
                      else len(words.encode(errors="replace")) // 64)
            if length > most:
                raise ValueError(f"{place}: the {what} is {length} tokens long; {most} fit")
