"""Your own pictures: a folder with image files and a metadata.jsonl of {"file_name", "text",
"prompt": optional} lines, or a metadata.csv with these columns (the Hugging Face ImageFolder
convention). Everything wrong with it is found before training starts, by file and line."""
import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from data import DESCRIBE, Split

WANTED = ('wanted: a metadata.jsonl with a line like {"file_name": "a.png", "text": "a caption"} '
          "for each picture, or a metadata.csv with the columns file_name,text")


def to_8_bits(image):
    """A picture with one wide channel -> greys of 8 bits, scaled by the bits of its highest value.
    Raises ValueError for fractions, and where the values are no greys of up to 16 bits."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" or low < 0 or high > 65535:
        raise ValueError(f"its values, {low:g} to {high:g}, are not whole numbers of 8 to 16 bits")
    full = 2 ** max(8, int(high).bit_length()) - 1
    return Image.fromarray((values * (255 / full)).round().astype(np.uint8))


def load_image(path, size_px):
    """An image file of any size and mode -> (3, size_px, size_px) uint8: upright, on white,
    centre-cropped, resized.

    Raises OSError if it is missing, ValueError naming the file if it is broken or no image."""
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode[0] in "IF":  # plain conversion would clip these, to white or black
                image = to_8_bits(image)
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            image = ImageOps.fit(image.convert("RGB"), (size_px, size_px))
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders fail in many ways
        raise ValueError(f"{path}: no image that can be read ({error}); convert it to JPEG or "
                         "PNG") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def is_held_out(content, share):
    """Whether a picture is held out, by the content (bytes) of its file: not by its name, of which
    one file may have several."""
    digest = hashlib.sha256(content).digest()
    return int.from_bytes(digest[:8], "big") / 2 ** 64 < share


def parse(metadata):
    """The path of a metadata.jsonl or metadata.csv -> (line number, dict) of each example. Raises
    ValueError naming file and line."""
    number, entries = 0, []

    def lines():
        nonlocal number
        for number, line in enumerate(metadata.read_bytes().splitlines(keepends=True), 1):
            yield line.decode("utf-8-sig")
    try:
        if metadata.suffix == ".csv":
            for row in csv.DictReader(lines()):
                if None in row:
                    raise ValueError("more cells than columns; a text with a comma needs quotes")
                entries.append((number, {name: cell for name, cell in row.items() if cell}))
        else:
            entries = [(number, json.loads(line)) for line in lines() if line.strip()]
    except (ValueError, csv.Error) as error:
        words = getattr(error, "msg", error)  # JSON's, without a line number of its own
        raise ValueError(f"{metadata}:{number}: {words}") from error
    return entries


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
    if not there:
        raise ValueError(f"{folder}: no metadata.jsonl or metadata.csv in it; {WANTED}")
    metadata = there[0]
    sides = {False: [], True: []}  # held out? -> (image, prompt, text, where)
    for number, entry in parse(metadata):
        where = f"{metadata}:{number}"
        try:
            name, text, prompt = check(entry)
            path = folder / name
            image, side = load_image(path, size_px), is_held_out(path.read_bytes(), holdout)
        except (ValueError, OSError) as error:
            raise ValueError(f"{where}: {error}") from error
        sides[side].append((image, prompt, text, where))
    if not sides[False]:
        raise ValueError(f"{metadata}: no example to train on, {len(sides[True])} held out "
                         f"(--holdout); {WANTED}")
    return [split(side) for side in (sides[False], sides[True])]


def split(side):
    if not side:
        return None, []
    images, prompts, texts, where = zip(*side)
    return Split(torch.stack(images), list(prompts), list(texts)), list(where)


def check_lengths(split, where, tokenizer, window, prompt_tokens):
    """Raises ValueError naming the place of a caption or prompt that does not fit."""
    for text, prompt, place in zip(split.texts, split.prompts, where):
        length = len(tokenizer.encode(text))
        if length >= window:
            raise ValueError(f"{place}: the caption is {length} tokens long; {window - 1} and the "
                             "EOS fit the window")
        length = len(tokenizer.encode(prompt))
        if length > prompt_tokens:
            raise ValueError(f"{place}: the prompt is {length} tokens long; {prompt_tokens} fit")
