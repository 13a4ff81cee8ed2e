"""Worlds known exactly: their posteriors against enumeration, their odds, and distances."""
import itertools
import math
import random

import pytest
import torch

from data import toy
from data.worlds import (EPSILON, Words, all_worlds, by_chance, by_rule, captions, graph, measure,
                         pairs, scene_of, total_variation, walks)
from rules import resolve

BOARD = toy.TOYS["tiny"]
WORLDS = {world.name: world for world in all_worlds()}
ODDS = 0.6, 0.3, 0.1


def chain(W, N, seed):
    """Every walk of W nodes with its probability."""
    step = torch.zeros(N, N).double()
    for node, following in enumerate(graph(N, len(ODDS), seed).tolist()):
        step[node, following] = torch.tensor(ODDS).double()
    first = torch.full((N,), 1 / N).double()
    for _ in range(2000):
        first = first @ step
    for walk in itertools.product(range(N), repeat=W):
        yield walk, first[walk[0]] * math.prod(step[a, b] for a, b in itertools.pairwise(walk))


def tied(W, seed):
    """Every window of W tied places with its probability."""
    first, other = torch.randperm(W, generator=torch.Generator().manual_seed(seed)).view(2, -1)
    for ks in itertools.product(range(3), repeat=W // 2):
        window = dict(zip(first.tolist(), ks)) | {
            place: (k + 1) % 3 for place, k in zip(other.tolist(), ks)}
        yield tuple(window[i] for i in range(W)), math.prod(ODDS[k] for k in ks)


@pytest.mark.parametrize("world, known, N", [
    (walks(4, 5, ODDS, 3), list(chain(4, 5, 3)), 5), (pairs(6, ODDS, 2), list(tied(6, 2)), 3)],
    ids=["walks", "pairs"])
def test_posteriors_are_those_of_an_enumeration(world, known, N):
    """Also of windows that cannot be right: each token that disagrees counts EPSILON."""
    rng, W = random.Random(0), world.config.window
    windows = torch.tensor([[rng.choice([world.config.mask_id, rng.randrange(N)])
                             for _ in range(W)] for _ in range(40)])
    found = world.look(40)(windows)[0].exp().double()
    for tokens, probs in zip(windows.tolist(), found):
        wanted = torch.zeros(W, world.config.vocab_size).double()
        for text, p in known:
            p = p * EPSILON ** sum(token not in (world.config.mask_id, word)
                                   for token, word in zip(tokens, text))
            for i, word in enumerate(text):
                wanted[i, word] += p
        torch.testing.assert_close(probs, wanted / wanted.sum(1, keepdim=True), rtol=1e-4,
                                   atol=1e-9)


@pytest.mark.parametrize("order", toy.ORDERS)
def test_captions_come_as_the_toy_set_draws_them(order):
    """Each that it draws is an outcome, and comes as often as its odds say."""
    board, rng = BOARD._replace(order=order), random.Random(0)
    scene = scene_of(board, 2).scenes[0]
    texts = [toy.draw_caption(scene, board, rng) for _ in range(3000)]
    words = Words(", and ".join(texts))
    world, ids = captions(board, scene, words, window=40), [words.encode(text) for text in texts]
    outcomes = world.outcomes(torch.tensor([row + [words.eos_id] * (40 - len(row)) for row in ids]))
    assert (world.odds[outcomes] > 0).all()
    assert total_variation(outcomes, world.odds) < 2 * by_chance(world, 3000)
    wrong = world.outcomes(torch.tensor([ids[0][:-1] + [words.eos_id] * 30]))  # a word too few
    assert world.odds[wrong] == 0
    if order == "reading":
        assert (world.odds > 0).sum() == 32  # 4 openings, 2 prepositions, 2 x 2 wordings


@pytest.mark.parametrize("name", WORLDS)
def test_odds(name):
    world = WORLDS[name]
    assert world.odds.sum().item() == pytest.approx(1) and (world.odds >= 0).all()
    assert ((0 <= world.likely) & (world.likely <= 1)).all()
    true = world.true(500, torch.Generator().manual_seed(1))
    assert (world.odds[true] > 0).all()
    assert total_variation(true, world.odds) == pytest.approx(by_chance(world, 500), rel=0.5)


def test_total_variation():
    odds = torch.tensor([0.5, 0.25, 0.25, 0.0]).double()
    for outcomes, wanted in (([[0, 0, 1, 2]], 0), ([[0, 1], [2, 3]], 0.25), ([3, 3], 1),
                             ([0], 0.5)):
        assert total_variation(torch.tensor(outcomes), odds) == pytest.approx(wanted)


@pytest.mark.parametrize("name", WORLDS)
def test_any_order_one_at_a_time_samples_truly(name):
    """As ancestral sampling does in any order that does not depend on what is drawn."""
    world = WORLDS[name]
    for rule in ("random_order:1", "left_to_right:1"):
        found = measure(world, by_rule(world, resolve(rule)), 200)
        assert found["right"] == 1 and found["passes"] == world.config.window
        assert found["distance"] < 1.6 * by_chance(world, 200)


def test_the_drawn_tokens_confidence_sharpens():
    """The finding of docs/worlds.md: right on all captions, and always the likelier wording; by
    the peak of the distributions the odds come out, in fewer passes."""
    world = WORLDS["captions"]
    drawn, peak, chance = (*(measure(world, by_rule(world, resolve(rule)), 500)
                             for rule in ("confident:0.9", "peak:0.9")), by_chance(world, 500))
    assert drawn["right"] == peak["right"] == 1 and peak["passes"] < drawn["passes"]
    assert drawn["likelier"] > 0.98 and abs(peak["likelier"] - 0.55) < 0.05
    assert drawn["distance"] > 0.5 and peak["distance"] < 1.5 * chance


def test_halving_is_exact_on_a_chain_and_middle_out_on_captions():
    for name, rule, passes in (("walks", "halving", 6), ("captions", "middle_out", 3)):
        world = WORLDS[name]
        found = measure(world, by_rule(world, resolve(rule)), 300)
        assert found["right"] > 0.99 and found["passes"] == pytest.approx(passes, abs=0.5)
        assert found["distance"] < 1.6 * by_chance(world, 300)
    broken = measure(WORLDS["pairs"], by_rule(WORLDS["pairs"], resolve("halving")), 300)
    assert broken["right"] < 0.05
