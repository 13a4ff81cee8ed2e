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
    """A grid x grid board with fewest..most objects and a name for each place."""
    grid: int
    fewest: int
    most: int
    place: Callable[[int, int], str]  # (row, column) -> words

    def phrase(self, thing, preposition):
        place = self.place(thing.row, thing.column)
        return f"a {thing.size} {thing.colour} {thing.shape} {preposition} {place}"


TOYS = {  # one for each preset
    "tiny": Toy(3, 1, 4, lambda row, column: "the {} {}".format(
        ("top", "middle", "bottom")[row], ("left", "center", "right")[column])),
    "small": Toy(6, 6, 12, lambda row, column: "row {} column {}".format(
        NUMBERS[row + 1], NUMBERS[column + 1])),
}


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

def caption(scene, toy, opening, preposition):
    """The scene in words: one of len(OPENINGS) * len(PREPOSITIONS) right captions, objects in
    reading order."""
    phrases = [toy.phrase(thing, preposition) for thing in scene]
    return opening + " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def count_answer(scene):
    return f"{NUMBERS[len(scene)]} shape" + "s" * (len(scene) > 1)


def parse(text, toy):
    """A caption -> its objects as stated, in order; None if it is not well formed: opening,
    phrases, joints, one preposition throughout, and a number of objects that the toy set can
    show."""
    opening = next((o for o in OPENINGS if text.startswith(o)), None)
    if opening is None:
        return None
    rest = text[len(opening):]
    *front, last = rest.split(" and ")
    if len(front) > 1:
        return None
    phrases = [*(front[0].split(", ") if front else []), last]
    places = {toy.place(row, column): (row, column)
              for row in range(toy.grid) for column in range(toy.grid)}
    pattern = re.compile(rf"a ({'|'.join(RADIUS_PX)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) "
                         rf"({'|'.join(PREPOSITIONS)}) ({'|'.join(places)})")
    matches = [pattern.fullmatch(phrase) for phrase in phrases]
    if None in matches or len({m[4] for m in matches}) > 1:
        return None
    if not toy.fewest <= len(matches) <= toy.most:
        return None
    return tuple(Object(*places[m[5]], m[1], m[2], m[3]) for m in matches)


def grade(text, scene, toy):
    """(well_formed, correct). Correct: well formed, every stated object is there as stated, none
    missing, none doubled, in reading order."""
    stated = parse(text, toy)
    return stated is not None, stated == tuple(scene)


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
        words = caption(scene, toy, rng.choice(OPENINGS), rng.choice(PREPOSITIONS))
        scenes.append(scene)
        prompts.append(prompt)
        texts.append(words if prompt == DESCRIBE else count_answer(scene))
    bar.close()
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Split(images, prompts, texts, scenes)
