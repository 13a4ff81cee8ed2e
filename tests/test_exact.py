"""The exact posterior against plain enumeration; what decoding makes of it; the loss above it."""
import functools
import itertools
import math
import random
from collections import Counter, defaultdict

import pytest
import torch

from data import DESCRIBE, toy
from data.exact import Exact, fewest_passes
from lab.evaluate import Floor
from mini_dimple import Config, confident, decode
from tokenizer import Tokenizer

BOARDS = {f"{wording} {order}": toy.TOYS["tiny"]._replace(wording=wording, order=order)
          for wording in toy.WORDINGS for order in toy.ORDERS}
SMALL = toy.TOYS["small"]


@pytest.fixture(params=BOARDS, scope="module")
def board(request):
    return BOARDS[request.param]


@functools.cache
def tokenizer_of(board):
    split = toy.examples(board, 300, 0, False)
    return Tokenizer.train(split.texts + split.prompts)


def draw_scenes(board, n, seed=0):
    rng = random.Random(seed)
    return [toy.draw_scene(board, rng) for _ in range(n)]


def exact_of(board, scenes, prompts=None):
    return Exact(scenes, prompts or [DESCRIBE] * len(scenes), board, tokenizer_of(board))


def padded(text, board, W):
    """A caption -> ids (W,), cut or filled with EOS."""
    tokenizer = tokenizer_of(board)
    ids = tokenizer.encode(text)[:W]
    return torch.tensor(ids + [tokenizer.eos_id] * (W - len(ids)))


def partly_masked(board, scenes, W, wrong=0.0, seed=0):
    """Windows (N, W): of a right caption each, some tokens of which are masked, others wrong."""
    rng, g = random.Random(seed), torch.Generator().manual_seed(seed)
    rows = torch.stack([padded(toy.draw_caption(scene, board, rng), board, W) for scene in scenes])
    mask_id = tokenizer_of(board).mask_id
    other = torch.randint(0, mask_id, rows.shape, generator=g)
    rows = torch.where(torch.rand(rows.shape, generator=g) < wrong, other, rows)
    shown = torch.rand(rows.shape, generator=g) < torch.rand(len(rows), 1, generator=g)
    return torch.where(shown, rows, mask_id)


def enumerated(board, scene, windows):
    """What Exact computes, from the list of all the scene's captions: (N, W, vocab)."""
    odds, tokenizer, said = toy.WORDINGS[board.wording], tokenizer_of(board), []
    orders = itertools.permutations(scene) if board.order == "free" else [scene]
    wordings = itertools.product(range(len(odds)), repeat=len(scene))
    for order, ks, opening, preposition in itertools.product(
            orders, wordings, toy.OPENINGS, toy.PREPOSITIONS):
        text = toy.caption(order, board, opening, preposition, ks)
        said.append((math.prod(odds[k] for k in ks), tokenizer.encode(text)))
    weights = torch.tensor([weight for weight, _ in said], dtype=torch.double)
    ids = torch.tensor([ids for _, ids in said])
    W = windows.shape[1]
    ids = torch.nn.functional.pad(ids, (0, W - ids.shape[1]), value=tokenizer.eos_id)
    found = torch.zeros(*windows.shape, tokenizer.vocab_size, dtype=torch.double)
    for window, probs in zip(windows, found):
        wrong = ((window != tokenizer.mask_id) & (window != ids)).sum(1)
        weight = (weights.log() + wrong * math.log(1e-6)).softmax(0)
        probs.scatter_add_(1, ids.T, weight.expand(W, -1))
    return found


def check(board, scenes, windows):
    """`windows` (N, W) of each scene: Exact against enumeration."""
    look = exact_of(board, scenes).look
    for b, scene in enumerate(scenes):
        got = look([b] * len(windows[b]))(windows[b])[0].exp()
        torch.testing.assert_close(got.double(), enumerated(board, scene, windows[b]),
                                   rtol=0, atol=1e-6)


# ---------------------------------------------------------------- the posterior

@pytest.mark.parametrize("W", [9, 44])
def test_the_posterior_is_that_of_all_captions_listed(board, W):
    """In windows cut short and longer than any caption; empty, with right tokens, with some wrong
    and with noise."""
    scenes = [next(scene for scene in draw_scenes(board, 99, W) if len(scene) == n)
              for n in (1, 2, 3)]
    empty = torch.full((1, W), tokenizer_of(board).mask_id)
    check(board, scenes, [torch.cat([empty, *(
        partly_masked(board, [scene] * 4, W, wrong) for wrong in (0, 0.2, 1))])
        for scene in scenes])


@pytest.mark.parametrize("wording, order, objects", [("three", "reading", 6), ("three", "free", 4)])
def test_so_it_is_of_as_many_objects_as_can_be_listed(wording, order, objects):
    board = SMALL._replace(wording=wording, order=order, fewest=objects, most=objects)
    scenes = draw_scenes(board, 1)
    check(board, scenes, [partly_masked(board, scenes * 4, 70, wrong=0.1)])


def test_where_a_device_has_no_float64_the_sums_are_the_cpus(board, monkeypatch):
    """As on Apple's GPUs: what is asked is on the CPU here, so all the rest must be, too."""
    scenes = draw_scenes(board, 4)
    tokens, rows = partly_masked(board, scenes, 40), torch.arange(4)
    exact = exact_of(board, scenes)
    wanted, _ = exact.look(rows, "cpu")(tokens)
    monkeypatch.setattr("data.exact.NO_FLOAT64", ("meta",))
    assert torch.equal(exact.look(rows, "meta")(tokens)[0], wanted)


@pytest.mark.parametrize("order", toy.ORDERS)
def test_a_caption_shown_word_by_word_in_any_order_has_its_odds(order):
    """The chain rule, where captions are too many to list: 6 and 7 objects, three wordings each."""
    board, N = SMALL._replace(wording="three", order=order, most=7), 8
    scenes, rng, g = draw_scenes(board, N), random.Random(0), torch.Generator().manual_seed(0)
    assert {len(scene) for scene in scenes} == {6, 7}
    texts = [toy.draw_caption(scene, board, rng) for scene in scenes]
    right = torch.stack([padded(text, board, 75) for text in texts])
    windows = torch.full_like(right, tokenizer_of(board).mask_id)
    look, rows, total = exact_of(board, scenes).look, torch.arange(N), torch.zeros(N)
    for at in torch.rand(right.shape, generator=g).argsort(1).T:
        token = right[rows, at]
        total += look(rows)(windows)[0][rows, at, token]
        windows[rows, at] = token
    for scene, text, found in zip(scenes, texts, total.tolist()):
        kinds = Counter()
        for phrase in text.split(" ", 3)[3].replace(" and ", ", ").split(", "):
            words = phrase.split()
            place_first, last = (0, 1) if order == "free" else (1, 0)
            kinds[place_first if words[0] in toy.PREPOSITIONS else
                  last if words[0] == "a" else 2] += 1
        odds = math.prod(toy.WORDINGS["three"][k] ** n for k, n in kinds.items())
        odds /= len(toy.OPENINGS) * (2 if kinds[0] + kinds[1] else 1)
        if order == "free":
            odds /= math.factorial(len(scene))
        assert found == pytest.approx(math.log(odds), abs=1e-3)


def test_a_row_is_the_same_whatever_rows_it_is_looked_at_with(board):
    scenes = draw_scenes(board, 8)
    assert len({len(scene) for scene in scenes}) > 2
    prompts = [toy.COUNT if b % 4 == 1 else DESCRIBE for b in range(8)]
    windows, exact = partly_masked(board, scenes, 40), exact_of(board, scenes, prompts)
    every = exact.look(torch.arange(8))(windows)[0]
    torch.testing.assert_close(every.exp().sum(-1), torch.ones(8, 40))
    some = exact.look(torch.tensor([6, 1, 1]))(windows[[6, 1, 1]])[0]
    torch.testing.assert_close(some, every[[6, 1, 1]])
    for b in range(8):
        alone = exact_of(board, scenes[b:b + 1], prompts[b:b + 1]).look([0])(windows[b:b + 1])[0]
        torch.testing.assert_close(alone.exp(), every[b:b + 1].exp())


def test_asked_to_count_it_knows_the_answer(board):
    scenes = draw_scenes(board, 5)
    windows = partly_masked(board, scenes, 12, wrong=0.3)  # of captions: far from any answer
    probs = exact_of(board, scenes, [toy.COUNT] * 5).look(slice(None))(windows)[0].exp()
    for scene, row in zip(scenes, probs):
        answer = padded(toy.count_answer(scene), board, 12)
        torch.testing.assert_close(row.gather(1, answer[:, None]), torch.ones(12, 1))


def test_a_tokenizer_that_cuts_wordings_into_different_lengths_is_refused():
    three = toy.TOYS["tiny"]._replace(wording="three")
    with pytest.raises(ValueError, match="captions of one length"):
        Exact(draw_scenes(three, 3), [DESCRIBE] * 3, three, Tokenizer([]))  # bytes


# ---------------------------------------------------------------- decoding it

def mistakes(board, scenes, rule, temperature=0.0):
    """What is wrong with the perfect model's captions, and after how many iterations."""
    tokenizer = tokenizer_of(board)
    config = Config(tokenizer.vocab_size, tokenizer.eos_id, tokenizer.mask_id)
    words = max(len(tokenizer.encode(toy.caption(scene, board, "i can see ", "at", [0] * 12)))
                for scene in scenes)
    window = torch.full((len(scenes), words + 5), tokenizer.mask_id)
    out = decode(exact_of(board, scenes).look(slice(None)), window, config, rule, temperature)
    found = [toy.mistake(tokenizer.decode(out.response(b)), scene, board)
             for b, scene in enumerate(scenes)]
    return set(found), out.iterations


@pytest.mark.parametrize("preset", toy.TOYS)
def test_confident_decoding_of_the_perfect_model_is_always_right(board, preset):
    if preset == "small":  # in free order all sets of a scene's objects are gone through
        most = 7 if board.order == "free" else 12
        board = SMALL._replace(wording=board.wording, order=board.order, most=most)
    wrong, iterations = mistakes(board, draw_scenes(board, 12), confident(0.9))
    assert wrong == {None}
    assert iterations.min() >= 2  # an opening's words never go all at once


def test_one_token_at_a_time_it_is_right_at_temperature_1_too(board):
    """In free order: no object is named twice."""
    for rule in (confident(1), lambda step: step.masked.cumsum(1) == 1):  # the leftmost
        torch.manual_seed(0)
        wrong, iterations = mistakes(board, draw_scenes(board, 8), rule, temperature=1.0)
        assert wrong == {None} and len(set(iterations.tolist())) == 1


# ---------------------------------------------------------------- the fewest passes

def independent(columns, odds):
    """Whether these columns (of values, one for each caption) are independent of one another."""
    joint, single = Counter(), [Counter() for _ in columns]
    for *values, share in zip(*columns, odds):
        joint[tuple(values)] += share
        for count, value in zip(single, values):
            count[value] += share
    total = sum(odds)
    return all(math.isclose(share / total, math.prod(
        count[value] / total for count, value in zip(single, values)), rel_tol=1e-9)
        for values, share in joint.items())


def independent_sets(columns, odds):
    """Of the columns that vary, all sets that are independent. Of several that are functions of one
    another a set can have one, and it does not matter which: the first stands for all."""
    def pattern(column):
        seen = {}
        return tuple(seen.setdefault(value, len(seen)) for value in column)
    classes, sets = [c for c in dict.fromkeys(map(pattern, columns)) if any(c)], [()]
    for column in classes:
        sets += [more for chosen in sets if independent(more := (*chosen, column), odds)]
    return sets


def can_finish(captions, odds, passes):
    """Whether `passes` passes can write any of these captions (of words, at one length), if each
    writes places that are independent given what is written: tried with all sets of places."""
    columns = list(zip(*captions))
    if passes == 1:
        return independent(columns, odds)
    for chosen in independent_sets(columns, odds):
        left = defaultdict(list)
        for caption, share, *values in zip(captions, odds, *chosen):
            left[tuple(values)].append((caption, share))
        if all(can_finish(*zip(*rest), passes - 1) for rest in left.values()):
            return True
    return False


@pytest.mark.parametrize("preset, objects", [
    ("tiny", 1), ("tiny", 2), ("tiny", 3), ("small", 2)])
@pytest.mark.parametrize("wording", toy.WORDINGS)
def test_the_fewest_passes_are_what_a_search_over_all_sets_of_places_finds(
        preset, objects, wording):
    board = toy.TOYS[preset]._replace(wording=wording, fewest=objects, most=objects)
    odds = toy.WORDINGS[wording]
    for scene in draw_scenes(board, 1):
        captions = Counter()
        for opening, preposition, *ks in itertools.product(
                toy.OPENINGS, toy.PREPOSITIONS, *[range(len(odds))] * objects):
            words = toy.caption(scene, board, opening, preposition, ks).replace(",", " ,").split()
            captions[tuple(words)] += math.prod(odds[k] for k in ks)
        n = fewest_passes(board, objects)
        assert can_finish(list(captions), list(captions.values()), n)
        assert not can_finish(list(captions), list(captions.values()), n - 1)


def test_the_fewest_passes_of_free_order_are_refused():
    with pytest.raises(ValueError, match="reading order"):
        fewest_passes(BOARDS["two free"], 2)


# ---------------------------------------------------------------- the loss above the floor

@pytest.fixture(scope="module")
def floor(board):
    tokenizer = tokenizer_of(board)
    config = Config(tokenizer.vocab_size, tokenizer.eos_id, tokenizer.mask_id)
    return Floor(board, config, tokenizer, torch.device("cpu"), n=80)


def test_the_exact_posterior_lies_on_the_floor_and_another_above(floor):
    look, g = floor.scenes.exact(), torch.Generator().manual_seed(0)
    for bias in (0, 3):
        rows = iter(floor.rows)  # a model is called on these in order
        biased = bias * torch.randn(floor.scenes.config.vocab_size, generator=g)
        above = floor(lambda images, prompts, noisy, causal: look(next(rows))(noisy)[0] + biased)
        assert set(above) == {"all", *Floor.PARTS}
        assert above["all"] > 0.005 if bias else set(above.values()) == {0}


def test_a_model_that_knows_nothing_lies_above_the_floor_by_what_is_left_open(floor, board):
    """All tokens alike: log(vocabulary) for each, less -log p of the exact posterior."""
    V, tokens = floor.scenes.config.vocab_size, floor.masked.sum().item()
    nothing = lambda images, prompts, noisy, causal: torch.zeros(*noisy.shape, V)
    above, least = floor(nothing), floor.least.sum().item() / tokens
    assert above["all"] == pytest.approx(math.log(V) - least, rel=1e-5)
    per_part = [floor.masked[floor.part == k].sum().item() / tokens for k in range(5)]
    assert above["all"] == pytest.approx(sum(
        share * above[part] for share, part in zip(per_part, Floor.PARTS)), rel=1e-5)
    for k, masked in zip(floor.part.tolist(), floor.masked.double().mean(1).tolist()):
        assert 0.2 * k <= masked <= 0.2 * (k + 1)
    again = Floor(board, floor.scenes.config, floor.scenes.tokenizer, torch.device("cpu"), n=80)
    assert again(nothing) == above
