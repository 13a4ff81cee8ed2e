"""Your own pictures: a folder with image files and a metadata.jsonl of {"file_name", "text", "prompt": optional} lines
(the Hugging Face ImageFolder convention). Everything wrong with it is found before training starts, by file and line."""
import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from data import DESCRIBE, Split

METADATA = "metadata.jsonl"


def load_image(path, size_px):
    """An image file of any size and mode -> (3, size_px, size_px) uint8: upright, on white, centre-cropped, resized.

    Raises ValueError naming the file if it is missing, broken or no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
            with Image.open(path) as image:
                image = ImageOps.exif_transpose(image)
                if image.mode[0] == "I":  # 16-bit grey: plain conversion would clip it to white
                    image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
                if image.has_transparency_data:
                    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
                image = ImageOps.fit(image.convert("RGB"), (size_px, size_px))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such image file") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not an image that Pillow can read") from None
    except Exception as error:  # Pillow's decoders fail in many ways
        raise ValueError(f"{path}: broken image ({error})") from None
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def is_held_out(file_name, share):
    digest = hashlib.sha256(file_name.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2 ** 64 < share


def read_line(raw, folder):
    """One line of metadata.jsonl (bytes) -> (file_name, text, prompt). Raises ValueError saying what is wrong."""
    try:
        entry = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise ValueError('not an object like {"file_name": "a.png", "text": "a caption"}')
    entry = {"prompt": DESCRIBE, **entry}
    for key in ("file_name", "text", "prompt"):
        if key not in entry:
            raise ValueError(f'"{key}" is missing')
        if not isinstance(entry[key], str):
            raise ValueError(f'"{key}" must be a string, not {json.dumps(entry[key])[:40]}')
        if not entry[key].strip():
            raise ValueError(f'"{key}" is empty')
    path = folder / entry["file_name"]
    if "\0" in entry["file_name"] or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f'"file_name" {entry["file_name"]!r} leaves the folder')
    return entry["file_name"], entry["text"], entry["prompt"]


def read(folder, size_px, holdout):
    """The folder's examples -> (train, held_out) `Split`s and, for each, "file:line" of every example.

    Raises ValueError naming file and line."""
    folder = Path(folder)
    metadata = folder / METADATA
    try:
        lines = metadata.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"{metadata}: cannot be read ({error.strerror}); a data folder holds image files and a "
                         f"{METADATA}") from None
    sides = {False: [], True: []}  # held out? -> (image, prompt, text, where)
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        where = f"{metadata}:{number}"
        try:
            name, text, prompt = read_line(raw, folder)
            image = load_image(folder / name, size_px)
        except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            raise ValueError(f"{where}: {error}") from None
        sides[is_held_out(name, holdout)].append((image, prompt, text, where))
    if not sides[False]:
        raise ValueError(f"{metadata}: no example left to train on ({len(sides[True])} held out); --holdout 0 holds none out")
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
            raise ValueError(f"{place}: the caption is {length} tokens long; {window - 1} and the EOS fit the window: "
                             f"shorten it (--preset small has the longest window)")
        length = len(tokenizer.encode(prompt))
        if length > prompt_tokens:
            raise ValueError(f"{place}: the prompt is {length} tokens long; at most {prompt_tokens} fit: shorten it")
