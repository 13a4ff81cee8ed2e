"""The worlds that are known exactly: their looks against enumeration, their odds against what true
samplers show, and what two orders of committing make of them."""
import itertools
import json
import math
from collections import Counter

import pytest
import torch
from conftest import refused_by

import lab.__main__
import lab.worlds
from data import toy, worlds
from lab import results
from lab.checkpoint import SHIPPED, load
from rules import resolve

TINY = toy.TOYS["tiny"]
FREE = TINY._replace(order="free")
EPSILON = {"captions": 1e-6, "orders": 1e-6, "walks": 1e-12, "pairs": 1e-12}


def small(name):
    """A world small enough to list -> world, all its windows (K, W), their odds (K,)."""
    if name == "walks":
        world, following = worlds.walks(5, 6), worlds.graph(6, 3, 0)
        first = torch.full((6,), 1 / 6).double()
        step = torch.zeros(6, 6).double()
        for node, others in enumerate(following.tolist()):
            for other, odds in zip(others, (0.5, 0.3, 0.2)):
                step[node, other] = odds
        for _ in range(500):
            first = first @ step
        windows = list(itertools.product(range(6), repeat=5))
        odds = [first[one[0]] * math.prod(step[a, b] for a, b in zip(one, one[1:]))
                for one in windows]
    elif name == "pairs":
        world, law = worlds.pairs(6), (0.4, 0.3, 0.2, 0.1)
        first, other = torch.randperm(6, generator=torch.Generator().manual_seed(0)).view(2, 3)
        windows, odds = [], []
        for words in itertools.product(range(4), repeat=3):
            window = [0] * 6
            for a, b, word in zip(first.tolist(), other.tolist(), words):
                window[a], window[b] = word, (word + 1) % 4
            windows.append(window)
            odds.append(math.prod(law[word] for word in words))
    else:
        board, objects = (TINY, 2) if name == "captions" else (FREE, 3)
        scene = worlds.scene_of(board, objects).scenes[0]
        world, windows, odds = worlds.captions(board, scene), [], []
        words = worlds.Words([toy.caption(scene, board, opening, "at", ks)
                              for opening in toy.OPENINGS for ks in ((0,) * 3, (1,) * 3)] + ["in"])
        for order in [scene] if board is TINY else itertools.permutations(scene):
            for ks in itertools.product((0, 1), repeat=objects):
                for opening, preposition in itertools.product(toy.OPENINGS, toy.PREPOSITIONS):
                    ids = words.encode(toy.caption(order, board, opening, preposition, ks).replace(
                        ",", " ,"))
                    windows.append(ids + [words.eos_id] * (48 - len(ids)))
                    odds.append(math.prod((0.55, 0.45)[k] for k in ks))
    odds = torch.tensor(odds).double()
    return world, torch.tensor(windows), odds / odds.sum()


WORLDS = pytest.mark.parametrize("name", EPSILON)


@WORLDS
def test_looks_are_the_posterior_of_all_windows_listed(name):
    """In windows partly masked, also off the support: with wrong words, and with EOS."""
    world, listed, odds = small(name)
    mask, g = world.config.mask_id, torch.Generator().manual_seed(0)
    windows = listed[torch.multinomial(odds, 40, True, generator=g)]
    wrong = torch.rand(windows.shape, generator=g) < torch.tensor([0, 0.3, 1, 0.1])[:, None].repeat(
        10, 1)
    windows = torch.where(wrong, torch.randint(0, mask, windows.shape, generator=g), windows)
    shown = torch.rand(windows.shape, generator=g) < torch.linspace(0, 1, 40)[:, None]
    windows = torch.where(shown, windows, mask)
    got, _ = world.look(40)(windows, None)
    assert got.shape == (*windows.shape, mask + 1) and got.isfinite().all()
    for window, logits in zip(windows, got):
        misses = ((window != mask) & (window != listed)).sum(1)
        weight = (odds.log() + misses * math.log(EPSILON[name])).softmax(0)
        wanted = torch.zeros(len(window), mask + 1).double()
        wanted.scatter_add_(1, listed.T, weight.expand(len(window), -1))
        torch.testing.assert_close(logits.double().exp(), wanted, rtol=0, atol=1e-6)


@WORLDS
def test_outcomes_have_the_odds_of_their_windows(name):
    """And what is in no list has odds 0."""
    world, listed, odds = small(name)
    listed, odds = listed[odds > 0], odds[odds > 0]
    assert world.odds.sum().item() == pytest.approx(1)
    outcomes = world.outcomes(listed)
    found = torch.zeros(len(world.odds)).double().index_add_(
        0, outcomes.flatten(), (odds[:, None] / outcomes.shape[1]).expand(outcomes.shape).flatten())
    torch.testing.assert_close(found, world.odds, rtol=0, atol=1e-6)
    broken = listed.clone()
    broken[:, 1] = world.config.eos_id
    assert (world.odds[world.outcomes(broken)] == 0).any(1).all()
    likelier = (world.odds * world.likely).sum().item()
    assert likelier == pytest.approx({"walks": 0.5, "pairs": 0.4}.get(name, 0.55))


def test_total_variation_by_its_definition():
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        odds = torch.rand(6, generator=g).double()
        odds[5] = 0
        odds /= odds.sum()
        seen = torch.randint(0, 6, (30, 3), generator=g)
        counts = Counter(seen.flatten().tolist())
        # the most that the two can differ by, over all sets of outcomes
        most = max(abs(sum(counts[i] / 90 - odds[i].item() for i in group))
                   for n in range(7) for group in itertools.combinations(range(6), n))
        assert worlds.total_variation(seen, odds) == pytest.approx(most)
    assert worlds.total_variation(torch.full((4, 1), 5), odds) == pytest.approx(1)


@WORLDS
def test_a_true_sampler_is_as_near_as_chance_allows(name):
    """Half of the mean of |share - odds|, by the normal approximation: sqrt(2 p (1 - p) / pi n)."""
    world, n = {one.name: one for one in worlds.all_worlds()}[name], 500
    shown = n * world.true(1, None).shape[1]
    about = (2 * world.odds * (1 - world.odds) / math.pi / shown).sqrt().sum().item() / 2
    chance = worlds.by_chance(world, n, repeats=100)
    # triples overlap: they are fewer than they seem
    assert about * 0.85 < chance < about * (1.8 if name == "walks" else 1.15)
    found = worlds.measure(world, worlds.by_rule(world, resolve("random_order:1")), n)
    assert found["right"] == 1 and found["passes"] == 48
    assert found["distance"] < 1.5 * chance
    assert found["likelier"] == pytest.approx((world.odds * world.likely).sum().item(), abs=0.05)


def test_the_order_of_what_was_drawn_prefers_the_likelier():
    """Where nothing exceeds the threshold the most probable of the drawn tokens is committed. By
    the entropy, which is the distribution's, it is not so. Both are always right."""
    world = worlds.all_worlds()[0]
    drawn, peak = (worlds.measure(world, worlds.by_rule(world, resolve(name)), 500)
                      for name in ("confident:0.9", "peak:0.9"))
    assert drawn["right"] == peak["right"] == 1
    assert drawn["distance"] > 0.65 and drawn["likelier"] == 1
    assert peak["distance"] < 0.15 and peak["likelier"] == pytest.approx(0.55, abs=0.05)


def test_halving_is_exact_on_a_chain_and_middle_out_on_captions():
    known = {one.name: one for one in worlds.all_worlds()}
    for name, rule, passes in (("walks", "halving", 6), ("captions", "middle_out", 3)):
        world = known[name]
        found = worlds.measure(world, worlds.by_rule(world, resolve(rule)), 300)
        assert found["right"] > 0.99 and found["passes"] == pytest.approx(passes, abs=0.5)
        assert found["distance"] < 1.6 * worlds.by_chance(world, 300)
    broken = worlds.measure(known["pairs"], worlds.by_rule(known["pairs"], resolve("halving")), 300)
    assert broken["right"] < 0.05


def test_few_words_or_a_checkpoints_tokenizer_is_the_same_world():
    _, tokenizer, origin = load(SHIPPED)
    scene = worlds.scene_of(TINY, 2).scenes[0]
    few, many = worlds.captions(TINY, scene), worlds.captions(toy.of(origin), scene, tokenizer)
    assert torch.equal(few.odds, many.odds) and few.config.vocab_size < 40
    for world in (few, many):
        right = worlds.measure(world, worlds.by_rule(world, resolve("maskgit:1"), 0.0), 2)
        assert right["right"] == 1 and right["likelier"] == 1


# ---------------------------------------------------------------- the command

main = lab.__main__.main
refused = refused_by(main)


def test_its_table_its_picture_and_its_part_of_the_page(tmp_path, capsys, monkeypatch):
    (tmp_path / "results.md").write_text("<!-- worlds -->\nold\n<!-- end of worlds -->\n")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.md")
    monkeypatch.setattr(lab.worlds, "FIGURES", tmp_path)
    main(["worlds", "--only", "random_order:12", "eb_sampler:0.5", "--samples", "20",
          "--temperature", "1", "0.2", "--checkpoint", str(SHIPPED), "--write", "--json",
          str(tmp_path / "f.json"), "--picture", str(tmp_path / "p.png")])
    rows = json.loads((tmp_path / "f.json").read_text())
    names = ["captions", "orders", "walks", "pairs", "captions, mini_dimple"]
    assert [row["world"] for row in rows[:5]] == names and len(rows) == 5 * (1 + 2 * 2)
    text = (tmp_path / "results.md").read_text()
    assert "old" not in text and text.count("| eb_sampler:0.5 |") == 2
    assert text.split("\n\n", 2)[2].split("\n\n<!--")[0] in capsys.readouterr().out
    by = {(row["rule"], row["world"], row["temperature"]): row for row in rows}
    one = by["eb_sampler:0.5", "pairs", 1]
    assert one["passes"] == 25 and f", {one['distance']:.3f}, " in text
    assert by["random_order:12", "walks", 1]["passes"] == 4
    assert by["eb_sampler:0.5", "pairs", 0.2]["likelier"] > one["likelier"]
    assert (tmp_path / "p.png").exists() == (tmp_path / "worlds.png").exists()
    assert "--rule other: unknown" in refused(capsys, "worlds", "--rule", "other")
