"""The toy set: the split, the pictures, the captions, the grader."""
import itertools
import math
import random
import re
from collections import Counter

import numpy as np
import pytest

from data import toy
from data.toy import TOYS, Object


@pytest.fixture(params=[f"{preset} {wording} {order}" for preset in TOYS
                        for wording in toy.WORDINGS for order in toy.ORDERS])
def board(request):
    preset, wording, order = request.param.split()
    return toy.of(dict(trained_on=preset, wording=wording, order=order))


def scenes(board, n=200):
    rng = random.Random(0)
    return [toy.draw_scene(board, rng) for _ in range(n)]


def test_a_tenth_of_all_scenes_is_held_out_and_never_occurs_in_training():
    """Of single objects, too, though they are few."""
    train, test = (toy.examples(TOYS["tiny"], 1500, 0, held_out) for held_out in (False, True))
    assert not set(train.scenes) & set(test.scenes)
    for scene in test.scenes[:50]:
        assert toy.is_held_out(tuple(reversed(scene))), "the hash is of the set, not of an order"
    attributes = itertools.product(range(3), range(3), toy.RADIUS_PX, toy.COLOURS, toy.SHAPES)
    singles = [(Object(*one),) for one in attributes]
    for some, low, high in ((singles, 0.06, 0.14), (scenes(TOYS["tiny"], 3000), 0.08, 0.12)):
        assert low < sum(map(toy.is_held_out, some)) / len(some) < high


def test_a_seed_makes_the_same_set_again_and_another_seed_another():
    a, b, c = (toy.examples(TOYS["tiny"], 50, seed, False) for seed in (1, 1, 2))
    assert a.texts == b.texts and a.prompts == b.prompts and (a.images == b.images).all()
    assert a.texts != c.texts


@pytest.mark.parametrize("board", TOYS.values(), ids=TOYS)
def test_pictures_show_every_attribute_without_doubt(board):
    """Read each object's cell with a ruler: nothing outside cells, nearest colour, height by
    size."""
    rng = random.Random(1)
    for scene in scenes(board, 60):
        pixels = np.asarray(toy.draw(scene, board, rng)).astype(float)
        paper = pixels[0, 0]
        if any(o.row == o.column == 0 for o in scene):
            paper = pixels.reshape(-1, 3).max(0)
        occupied = {(o.row, o.column): o for o in scene}
        for row, column in itertools.product(range(board.grid), repeat=2):
            cell = pixels[16 * row:16 * row + 16, 16 * column:16 * column + 16]
            contrast = np.abs(cell - paper).max(-1)
            ink, thing = contrast > 60, occupied.get((row, column))
            if thing is None:
                assert not ink.any()
                continue
            colour = cell[contrast > 0.9 * contrast.max()].mean(0)
            nearest = min(toy.COLOURS, key=lambda k: np.abs(colour - toy.COLOURS[k]).sum())
            assert nearest == thing.colour
            radius = ink.any(1).sum() / {"square": 1.6, "triangle": 1.8}.get(thing.shape, 2)
            assert radius <= 5 if thing.size == "small" else 5.5 <= radius <= 8


def test_shapes_differ_by_how_much_of_their_box_they_fill():
    """But triangle and diamond (both one half): those by the balance of their upper and lower
    half."""
    fill, top = {}, {}
    for shape in toy.SHAPES:
        ratios, halves = [], []
        for seed in range(20):
            scene = (Object(1, 1, "large", "black", shape),)
            picture = toy.draw(scene, TOYS["tiny"], random.Random(seed))
            ink = np.asarray(picture.convert("L")) < 128
            rows, columns = np.where(ink.any(1))[0], np.where(ink.any(0))[0]
            box = ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
            ratios.append(box.mean())
            halves.append(box[:len(box) // 2].sum() / box.sum())
        fill[shape], top[shape] = np.mean(ratios), np.mean(halves)
    assert fill["square"] > 0.95 > 0.85 > fill["circle"] > 0.7
    assert all(fill[shape] < 0.62 for shape in ("triangle", "diamond", "cross"))
    assert top["triangle"] < 0.35 < 0.42 < top["diamond"]


# ---------------------------------------------------------------- the grader

def test_the_grader_accepts_every_right_caption_and_all_of_a_scene_have_one_length(board):
    """All openings and prepositions; each wording for all objects, and any of them for each."""
    rng, kinds = random.Random(0), range(len(toy.WORDINGS[board.wording]))
    for scene in scenes(board, 15):
        texts = {toy.draw_caption(scene, board, rng) for _ in range(5)}
        for opening, preposition in itertools.product(toy.OPENINGS, toy.PREPOSITIONS):
            for wordings in (*([k] * len(scene) for k in kinds), rng.choices(kinds, k=len(scene))):
                told = rng.sample(scene, len(scene)) if board.order == "free" else scene
                text = toy.caption(told, board, opening, preposition, wordings)
                assert toy.mistake(text, scene, board, ended=False) is None
                assert toy.parse(text, board) == tuple(told)
                texts.add(text)
        assert {toy.mistake(text, scene, board) for text in texts} == {None}
        assert len({len(re.findall(r"\w+|,", text)) for text in texts}) == 1


def test_the_grader_refuses_any_word_that_is_changed_left_out_or_said_twice(board):
    """But a caption's only preposition may be the other one as well."""
    rng = random.Random(2)
    captions = [(scene, toy.draw_caption(scene, board, rng)) for scene in scenes(board, 150)]
    vocabulary = sorted({word.strip(",") for _, text in captions for word in text.split()})
    for scene, text in captions:
        words = text.split(" ")
        i = rng.randrange(len(words))
        word, comma = words[i].rstrip(","), "," * words[i].endswith(",")
        other = rng.choice([w for w in vocabulary if w != word])
        changed = " ".join([*words[:i], other + comma, *words[i + 1:]])
        also_right = ({word, other} == set(toy.PREPOSITIONS)
                      and sum(w in toy.PREPOSITIONS for w in words) == 1)
        assert (toy.mistake(changed, scene, board) is None) == also_right, changed
        for faulty in (words[:i] + words[i + 1:], words[:i] + [words[i]] + words[i:]):
            assert toy.mistake(" ".join(faulty), scene, board), faulty


RED, BLUE = "a small red circle in the top left", "in the middle center a large blue square"
GREEN = "the bottom right has a large green cross"
SCENE = (Object(0, 0, "small", "red", "circle"), Object(1, 1, "large", "blue", "square"),
         Object(2, 2, "large", "green", "cross"))
MISTAKEN = [  # what follows the opening, what is wrong
    (f"{RED}, {BLUE} and {GREEN}", None),
    (f"{BLUE}, {GREEN} and {RED}", "out of order"),
    (f"{RED} and {GREEN}", "missing"),
    (f"{RED}, {BLUE} and {GREEN.replace('green', 'red')}", "wrong attribute"),
    (f"{RED}, {BLUE} and {GREEN.replace('bottom', 'top')}", "wrong attribute"),
    (f"{RED}, {BLUE}, {GREEN} and {GREEN}", "doubled"),
    (f"{RED}, {RED.replace('red', 'blue')} and {BLUE}", "doubled"),
    (f"{RED}, {BLUE.replace('in ', 'at ')} and {GREEN}", "preposition mixed"),
    (f"{RED.replace('in ', 'at ')} and {BLUE}", "preposition mixed"),
    *((text, "phrase mangled") for text in (
        f"{RED.replace(' in ', ' has ')}, {BLUE} and {GREEN}", f"{RED}, {BLUE}, {GREEN}",
        f"{RED.replace('in ', 'at ')}, {BLUE} and {GREEN[:-6]}", f"{RED} and {BLUE} and {GREEN}",
        f"{RED} {BLUE}", f"{RED} and", f"{RED} ", f" {RED}", f"{RED}.", "")),
]


@pytest.mark.parametrize("order", toy.ORDERS)
def test_the_grader_says_what_is_wrong(order):
    """The first of MISTAKES; in free order, no order is; what did not end is not known."""
    board, kinds = TOYS["tiny"]._replace(wording="three", order=order), set()
    for text, wrong in MISTAKEN:
        wrong = None if (order, wrong) == ("free", "out of order") else wrong
        for opening, ended, found in (("here we find ", True, wrong), ("here we ", True, "opening"),
                                      ("here we find ", False, wrong and "no end")):
            assert toy.mistake(opening + text, SCENE, board, ended) == found, text
            kinds.add(found)
    assert kinds == {None, *toy.MISTAKES} - ({"out of order"} if order == "free" else set())


@pytest.mark.parametrize("wording, known", [
    ("one", [RED]), ("two", [RED, BLUE]), ("three", [RED, BLUE, GREEN])])
def test_of_wordings_only_those_of_the_board_are_read(wording, known):
    board = TOYS["tiny"]._replace(wording=wording)
    for phrase in (RED, BLUE, GREEN):
        wrong = None if phrase in known else "phrase mangled"
        assert toy.read("i can see " + phrase, board)[1] == wrong


# ---------------------------------------------------------------- sets

@pytest.mark.parametrize("wording", toy.WORDINGS)
def test_all_that_a_caption_leaves_open_is_drawn_by_its_odds(wording):
    """Each object's wording for itself; opening and preposition; in free order, the order."""
    board, odds = TOYS["tiny"]._replace(wording=wording, order="free"), toy.WORDINGS[wording]
    n, rng = 6000, random.Random(0)
    drawn = [toy.draw_caption(SCENE, board, rng) for _ in range(n)]
    # of the board's phrases the second begins with the object, the third has no preposition
    wordings = lambda text: tuple(1 if phrase.startswith("a ") else 2 if " has " in phrase else 0
                                  for phrase in re.split(", | and ", text.split(" ", 3)[3]))
    choices = itertools.product(range(len(odds)), repeat=3)
    none = sum(odds[2:]) ** 3  # the share of captions without a preposition
    orders = itertools.permutations(thing.shape for thing in SCENE)
    for part, wanted in (
            (lambda text: text[:8], {opening[:8]: 1 / 4 for opening in toy.OPENINGS}),
            (lambda text: " at " in text, {True: (1 - none) / 2, False: (1 + none) / 2}),
            (wordings, {ks: math.prod(odds[k] for k in ks) for ks in choices}),
            (lambda text: tuple(thing.shape for thing in toy.parse(text, board)),
             {order: 1 / 6 for order in orders})):
        found = Counter(map(part, drawn))
        assert set(found) <= set(wanted)
        for kind, p in wanted.items():
            assert abs(found[kind] / n - p) <= 4.5 * math.sqrt(p * (1 - p) / n), kind


def test_a_checkpoint_says_what_its_toy_set_leaves_open():
    """Checkpoints from before there was a choice had one wording and reading order."""
    assert toy.of(dict(trained_on="pictures", wording="no matter")) is None
    for words, wanted in (({}, ("one", "reading")),
                          (dict(wording="three", order="free"), ("three", "free"))):
        board = toy.of(dict(trained_on="tiny", **words))
        assert (board.wording, board.order) == wanted and board.grid == 3
    for name in ("wording", "order"):
        with pytest.raises(ValueError, match=name):
            toy.of({"trained_on": "tiny", name: "four"})


def test_sets_mix_openings_and_instructions():
    split = toy.examples(TOYS["tiny"], 2000, 0, held_out=False)
    share = Counter(split.prompts)
    assert 0.1 < share[toy.COUNT] / 2000 < 0.2 and set(share) == {toy.DESCRIBE, toy.COUNT}
    texts = [t for t, p in zip(split.texts, split.prompts) if p == toy.DESCRIBE]
    for opening in toy.OPENINGS:
        assert 0.2 < sum(t.startswith(opening) for t in texts) / len(texts) < 0.3
    for text, prompt, scene in zip(split.texts, split.prompts, split.scenes):
        assert prompt == toy.DESCRIBE or text == toy.count_answer(scene)
