"""The toy set: the split, the pictures, the captions, the grader."""
import itertools
import random
from collections import Counter

import numpy as np
import pytest

from data import toy
from data.toy import TOYS, Object


@pytest.fixture(params=TOYS)
def board(request):
    return TOYS[request.param]


def scenes(board, n=200):
    rng = random.Random(0)
    return [toy.draw_scene(board, rng) for _ in range(n)]


def test_held_out_scenes_never_occur_in_training():
    train, test = (toy.examples(TOYS["tiny"], 3000, 0, held_out) for held_out in (False, True))
    assert not set(train.scenes) & set(test.scenes)
    for split in (train, test):
        assert any(len(scene) == 1 for scene in split.scenes)
    for scene in test.scenes[:50]:
        assert toy.is_held_out(tuple(reversed(scene))), "the hash is of the set, not of an order"


def test_about_a_tenth_of_all_scenes_is_held_out_and_of_single_objects_too():
    attributes = itertools.product(range(3), range(3), toy.RADIUS_PX, toy.COLOURS, toy.SHAPES)
    singles = [(Object(*one),) for one in attributes]
    assert 0.06 < sum(map(toy.is_held_out, singles)) / len(singles) < 0.14
    many = scenes(TOYS["tiny"], 3000)
    assert 0.08 < sum(map(toy.is_held_out, many)) / len(many) < 0.12


def test_a_seed_makes_the_same_set_again_and_another_seed_another():
    a, b, c = (toy.examples(TOYS["tiny"], 50, seed, False) for seed in (1, 1, 2))
    assert a.texts == b.texts and a.prompts == b.prompts and (a.images == b.images).all()
    assert a.texts != c.texts


def test_pictures_show_every_attribute_without_doubt(board):
    """Read each object's cell with a ruler: nothing outside cells, nearest colour, area by size,
    silhouette by shape."""
    rng = random.Random(1)
    for scene in scenes(board, 120):
        pixels = np.asarray(toy.draw(scene, board, rng)).astype(float)
        paper = pixels[0, 0]
        if any(o.row == o.column == 0 for o in scene):
            paper = pixels.reshape(-1, 3).max(0)
        occupied = {(o.row, o.column): o for o in scene}
        for row in range(board.grid):
            for column in range(board.grid):
                cell = pixels[16 * row:16 * row + 16, 16 * column:16 * column + 16]
                contrast = np.abs(cell - paper).max(-1)
                ink = contrast > 60
                thing = occupied.get((row, column))
                if thing is None:
                    assert not ink.any()
                    continue
                colour = cell[contrast > 0.9 * contrast.max()].mean(0)
                nearest = min(toy.COLOURS, key=lambda k: np.abs(colour - toy.COLOURS[k]).sum())
                assert nearest == thing.colour
                height = ink.any(1).sum()
                radius = height / {"square": 1.6, "triangle": 1.8}.get(thing.shape, 2)
                assert radius <= 5 if thing.size == "small" else 5.5 <= radius <= 8


def test_shapes_differ_by_how_much_of_their_box_they_fill():
    """Fill ratios of the silhouettes, averaged over many drawings, are far apart except triangle
    and diamond (both one half), which the balance of their upper and lower half tells apart."""
    fill, top = {}, {}
    for shape in toy.SHAPES:
        ratios, halves = [], []
        for seed in range(40):
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
    assert fill["square"] - fill["circle"] > 0.1


def test_the_grader_accepts_every_right_caption(board):
    for scene in scenes(board, 60):
        for opening in toy.OPENINGS:
            for preposition in toy.PREPOSITIONS:
                text = toy.caption(scene, board, opening, preposition)
                assert toy.grade(text, scene, board) == (True, True)


def test_the_grader_refuses_any_changed_word(board):
    rng = random.Random(2)
    say = lambda scene: toy.caption(scene, board, "i can see ", "at")
    captions = [say(scene).replace(",", "") for scene in scenes(board)]
    vocabulary = sorted({"in", *" ".join(captions).split()})
    for scene in scenes(board, 150):
        words = say(scene).split(" ")
        i = rng.randrange(len(words))
        other = rng.choice([w for w in vocabulary if w != words[i].rstrip(",")])
        changed = " ".join([*words[:i], other + "," * words[i].endswith(","), *words[i + 1:]])
        one_preposition = len(scene) == 1 and {words[i], other} == {"at", "in"}
        assert toy.grade(changed, scene, board)[1] == one_preposition, changed


def test_the_grader_knows_missing_doubled_false_and_misordered_facts():
    board = TOYS["tiny"]
    say = lambda *things: toy.caption(things, board, "there is just ", "in")
    a, b = Object(0, 0, "small", "red", "circle"), Object(1, 1, "large", "blue", "square")
    c = Object(2, 2, "large", "green", "cross")
    scene = a, b, c
    assert toy.grade(say(a, b, c), scene, board) == (True, True)
    for facts in ((a, b), (a, b, b, c), (a, b, c, c), (a, b, c._replace(colour="red")), (a, c, b),
                  (a, b, c, c._replace(row=0))):
        assert toy.grade(say(*facts), scene, board) == (True, False)


RED, BLUE = "a small red circle in the top left", "a large blue square in the middle center"


@pytest.mark.parametrize("text", [
    "", "a", "nonsense", "i can see", "i can see i can see " + RED, RED, "there can see " + RED,
    *("i can see " + rest for rest in (
        "", f"{RED} and", f"{RED},", f"{RED} and {BLUE.replace(' in ', ' at ')}", f"{RED}, {BLUE}",
        f"{RED} and {BLUE} and a large green cross in the bottom right", f"{RED} ", f" {RED}",
        "a red small circle in the top left", f"{RED}.", RED.capitalize()))])
def test_ill_formed_captions(text):
    assert toy.parse(f"i can see {RED} and {BLUE}", TOYS["tiny"])
    assert toy.parse(text, TOYS["tiny"]) is None


def test_sets_mix_wordings_and_instructions():
    split = toy.examples(TOYS["tiny"], 2000, 0, held_out=False)
    share = Counter(split.prompts)
    assert 0.1 < share[toy.COUNT] / 2000 < 0.2 and set(share) == {toy.DESCRIBE, toy.COUNT}
    texts = [t for t, p in zip(split.texts, split.prompts) if p == toy.DESCRIBE]
    for opening in toy.OPENINGS:
        assert len(opening.split()) == 3  # one length: the same scene's captions all line up
        assert 0.2 < sum(t.startswith(opening) for t in texts) / len(texts) < 0.3
    assert 0.45 < sum(" in the " in t for t in texts) / len(texts) < 0.55
    for text, prompt, scene in zip(split.texts, split.prompts, split.scenes):
        assert prompt == toy.DESCRIBE or text == toy.count_answer(scene)


def test_small_captions_have_60_to_130_words():
    split = toy.examples(TOYS["small"], 300, 0, held_out=False, instruction=toy.DESCRIBE)
    lengths = [len(t.replace(",", " ,").split()) for t in split.texts]
    assert 55 <= min(lengths) and max(lengths) <= 130
    assert {len(scene) for scene in split.scenes} == set(range(6, 13))
