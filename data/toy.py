"""The toy set: pictures of coloured shapes on a grid, captions from a small grammar, and a grader
that reads them back.

Everything is made in memory from a seed. A scene is a tuple of `Object`s in reading order; one
tenth of all scenes is held out, by a hash of the scene taken before any picture is drawn, so that
no held-out scene occurs in training.
"""
import hashlib
import random
import re
from typing import Callable, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from data import DESCRIBE, Split

SHAPES = ("circle", "square", "triangle", "diamond", "cross")
COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220),
           "yellow": (230, 200, 40), "purple": (150, 50, 180), "black": (40, 40, 40)}
RADIUS_PX = {"small": (3.6, 4.2), "large": (6.0, 7.0)}  # far apart: the size is never in doubt
CELL_PX = 16
# All of one length in tokens. A mixed length leaves the place of every later word unknown until the
# opening is settled; the diffusion phase then learns it with some seeds and fails with others
# (docs/results.md, "The default run").
OPENINGS = ("i can see ", "there is just ", "here we find ", "the picture shows ")
PREPOSITIONS = ("at", "in")
# One object in words, each of one length, too; its wording is drawn for it alone. Odds are unequal,
# so that no tie between wordings is decided by the lowest id.
PHRASES = ("a {thing} {preposition} {place}", "{preposition} {place} a {thing}",
           "{place} has a {thing}")
WORDINGS = {"one": (1.0,), "two": (0.55, 0.45), "three": (0.4, 0.35, 0.25)}  # their odds
ORDERS = ("reading", "free")  # of the objects: free draws one for each caption
MISTAKES = ("opening", "phrase mangled", "preposition mixed", "doubled", "wrong attribute",
            "missing", "out of order", "no end")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
           "eleven", "twelve")
COUNT = "count the shapes"  # the second instruction
COUNT_SHARE = 0.15  # of the training examples
HELD_OUT_SHARE = 0.1


class Object(NamedTuple):
    row: int
    column: int
    size: str
    colour: str
    shape: str


class Toy(NamedTuple):
    """A grid x grid board with fewest..most objects and a name for each place, and how much its
    pictures leave open: in how many wordings an object may be told, and in which order."""
    grid: int
    fewest: int
    most: int
    place: Callable[[int, int], str]  # (row, column) -> words
    wording: str = "two"
    order: str = "reading"

    @property
    def phrases(self):
        """The wordings of an object, in the order of their odds. Where objects come in any order
        the place comes first: it says which of them is meant."""
        first = PHRASES if self.order == "reading" else (PHRASES[1], PHRASES[0], PHRASES[2])
        return first[:len(WORDINGS[self.wording])]

    def phrase(self, thing, preposition, wording=0):
        """An object in words; `wording`: which of its `phrases`."""
        return self.phrases[wording].format(
            thing=f"{thing.size} {thing.colour} {thing.shape}", preposition=preposition,
            place=self.place(thing.row, thing.column))


TOYS = {  # one for each preset
    "tiny": Toy(3, 1, 4, lambda row, column: "the {} {}".format(
        ("top", "middle", "bottom")[row], ("left", "center", "right")[column])),
    "small": Toy(6, 6, 12, lambda row, column: "row {} column {}".format(
        NUMBERS[row + 1], NUMBERS[column + 1])),
}


def of(origin):
    """A checkpoint's origin (dict) -> the Toy that it was trained on; None for own pictures. Raises
    ValueError for a wording or an order that is none."""
    if origin["trained_on"] not in TOYS:
        return None
    asked = {}
    for name, known, usual in (("wording", WORDINGS, "one"), ("order", ORDERS, "reading")):
        asked[name] = origin.get(name, usual)
        if asked[name] not in tuple(known):
            raise ValueError(f"{name} {asked[name]!r:.60}: expected one of {', '.join(known)}")
    return TOYS[origin["trained_on"]]._replace(**asked)


# ---------------------------------------------------------------- scenes

def is_held_out(scene):
    """Whether a scene (its objects in any order) belongs to the held-out tenth of all scenes."""
    digest = hashlib.sha256(repr(sorted(map(tuple, scene))).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2 ** 64 < HELD_OUT_SHARE


def draw_scene(toy, rng):
    """A random scene. A count of n objects has weight n: few distinct scenes have one object, very
    many have four."""
    counts = range(toy.fewest, toy.most + 1)
    count = rng.choices(counts, weights=counts)[0]
    cells = sorted(rng.sample(range(toy.grid ** 2), count))
    return tuple(Object(*divmod(cell, toy.grid), rng.choice(tuple(RADIUS_PX)),
                        rng.choice(tuple(COLOURS)), rng.choice(SHAPES)) for cell in cells)


# ---------------------------------------------------------------- pictures

OUTLINES = {  # corners on a circle of radius 1 around the middle; y points down
    "square": [(-.8, -.8), (.8, -.8), (.8, .8), (-.8, .8)],
    "triangle": [(0, -1), (1, .8), (-1, .8)],
    "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
    "cross": [(-.3, -1), (.3, -1), (.3, -.3), (1, -.3), (1, .3), (.3, .3),
              (.3, 1), (-.3, 1), (-.3, .3), (-1, .3), (-1, -.3), (-.3, -.3)],
}


def draw(scene, toy, rng, scale=4):
    """A scene -> PIL image, (16 * grid) px square: each object jittered inside its cell in place,
    size and colour."""
    paper = rng.randint(225, 255)
    picture = Image.new("RGB", (toy.grid * CELL_PX, toy.grid * CELL_PX), (paper, paper, paper))
    for thing in scene:
        radius = rng.uniform(*RADIUS_PX[thing.size])
        slack = CELL_PX / 2 - radius - 0.5
        x, y = (CELL_PX / 2 + rng.uniform(-slack, slack) for _ in "xy")
        colour = tuple(max(0, min(255, c + rng.randint(-15, 15))) for c in COLOURS[thing.colour])
        # drawn larger, then averaged down: smooth edges
        cell = Image.new("L", (CELL_PX * scale, CELL_PX * scale))
        if thing.shape == "circle":
            box = [scale * v for v in (x - radius, y - radius, x + radius, y + radius)]
            ImageDraw.Draw(cell).ellipse(box, fill=255)
        else:
            outline = OUTLINES[thing.shape]
            corners = [(scale * (x + radius * u), scale * (y + radius * v)) for u, v in outline]
            ImageDraw.Draw(cell).polygon(corners, fill=255)
        cell = cell.reduce(scale)
        corner = thing.column * CELL_PX, thing.row * CELL_PX
        picture.paste(colour, (*corner, corner[0] + CELL_PX, corner[1] + CELL_PX), cell)
    return picture


# ---------------------------------------------------------------- captions and their grader

def caption(scene, toy, opening, preposition, wordings):
    """The scene in words, its objects in the order given; `wordings`: one for each."""
    phrases = [toy.phrase(thing, preposition, k) for thing, k in zip(scene, wordings)]
    return opening + " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def draw_caption(scene, toy, rng):
    """One of the scene's right captions, by their odds."""
    opening, preposition = rng.choice(OPENINGS), rng.choice(PREPOSITIONS)
    odds = WORDINGS[toy.wording]
    wordings = rng.choices(range(len(odds)), odds, k=len(scene))
    if toy.order == "free":
        scene = rng.sample(scene, len(scene))
    return caption(scene, toy, opening, preposition, wordings)


def count_answer(scene):
    return f"{NUMBERS[len(scene)]} shape" + "s" * (len(scene) > 1)


def read(text, toy):
    """A caption -> its objects as stated, in order, and None; or None, and which of MISTAKES its
    form has: an opening that is none, a phrase or joint that is none, two prepositions."""
    opening = next((o for o in OPENINGS if text.startswith(o)), None)
    if opening is None:
        return None, "opening"
    *front, last = text[len(opening):].split(" and ")
    places = {toy.place(row, column): (row, column)
              for row in range(toy.grid) for column in range(toy.grid)}
    thing = (f"(?P<size>{'|'.join(RADIUS_PX)}) (?P<colour>{'|'.join(COLOURS)}) "
             f"(?P<shape>{'|'.join(SHAPES)})")
    patterns = [re.compile(phrase.format(thing=thing, place=f"(?P<place>{'|'.join(places)})",
                                         preposition=f"(?P<by>{'|'.join(PREPOSITIONS)})"))
                for phrase in toy.phrases]
    stated, prepositions = [], set()
    for phrase in [*(front[0].split(", ") if front else []), last]:
        match = next(filter(None, (pattern.fullmatch(phrase) for pattern in patterns)), None)
        if match is None or len(front) > 1:
            return None, "phrase mangled"
        found = match.groupdict()
        prepositions |= {found.get("by")} - {None}  # one wording has none
        stated.append(Object(*places[found["place"]], found["size"], found["colour"],
                             found["shape"]))
    return (None, "preposition mixed") if len(prepositions) > 1 else (tuple(stated), None)


def parse(text, toy):
    """A caption -> its objects as stated, in order; None if it is not well formed."""
    return read(text, toy)[0]


def mistake(text, scene, toy, ended=True):
    """What is wrong with a caption: None if it is fully right (in form, each object stated as it
    is, none missing, none doubled, in order), else the first of MISTAKES. An object stated where
    there is none has a wrong attribute, too. `ended`: whether the window had room for an end."""
    stated, wrong = read(text, toy)
    if stated is not None:
        if len({(thing.row, thing.column) for thing in stated}) < len(stated):
            wrong = "doubled"
        elif not set(stated) <= set(scene):
            wrong = "wrong attribute"
        elif len(stated) < len(scene):
            wrong = "missing"
        elif toy.order == "reading" and stated != tuple(scene):
            wrong = "out of order"
    return "no end" if wrong and not ended else wrong


# ---------------------------------------------------------------- sets

def examples(toy, n, seed, held_out, instruction=None):
    """n examples as a `Split`. `instruction` fixes the prompt; without it COUNT_SHARE of them
    count, the rest describe."""
    rng, size_px = random.Random(f"{seed} {held_out}"), toy.grid * CELL_PX
    images, prompts, texts, scenes = np.empty((n, size_px, size_px, 3), np.uint8), [], [], []
    # shown only if it takes long
    bar = tqdm(total=n, desc="drawing scenes", leave=False, delay=1, disable=None)
    while len(scenes) < n:
        scene = draw_scene(toy, rng)
        if is_held_out(scene) != held_out:
            continue
        bar.update()
        images[len(scenes)] = draw(scene, toy, rng)
        prompt = instruction or (COUNT if rng.random() < COUNT_SHARE else DESCRIBE)
        words = draw_caption(scene, toy, rng)
        scenes.append(scene)
        prompts.append(prompt)
        texts.append(words if prompt == DESCRIBE else count_answer(scene))
    bar.close()
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Split(images, prompts, texts, scenes)
