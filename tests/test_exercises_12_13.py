"""Exercises 12 and 13: well-known mistakes fail with the lesson they need, any right answer
passes."""
import re

import pytest

from data import toy
from exercises.checks import exact_posterior, shipped
from test_exercises import answer, assert_lesson, assert_passes, named, run

MISTAKES = [  # exercise, what is changed in the answer, and into what; the lesson
    ("12", "odds * agreeing(", "agreeing(", "count the same.*the odds"),
    ("12", "odds * agreeing(captions, tokens, mask_id)", "odds", "as if nothing were committed"),
    ("12", "    weight = weight / weight.sum()\n", "", "add up to 0.*divide by their sum"),
    ("12", "((captions == tokens) | (tokens == mask_id)).all(1)", "(captions == tokens).all(1)",
     "Does no caption agree.*compare committed positions only"),
    ("12", "((captions == tokens) | (tokens == mask_id)).all(1)",
     "(captions == tokens).any(1) | (tokens == mask_id).all()", "all\\(1\\), not any\\(1\\)"),
    ("12", "    weight = odds * agreeing(captions, tokens, mask_id)\n",
     "    odds[~agreeing(captions, tokens, mask_id)] = 0\n    weight = odds\n",
     "posterior changes its arguments.*The next pass"),
    ("12", "odds * agreeing(captions, tokens, mask_id)",
     "odds ** 2 * agreeing(captions, tokens, mask_id)", "The odds enter twice"),
    ("12", "mask_id + 1)", "mask_id)", "posterior has shape \\(12, 398\\)"),
    ("12", "return probs.scatter_add(1, captions.mT, weight.expand(len(tokens), -1))",
     "probs = probs.scatter_add(1, captions.mT, weight.expand(len(tokens), -1))\n"
     "    return (probs == probs.amax(1, True)) / (probs == probs.amax(1, True)).sum(1, True)",
     "data/exact.py"),
    ("12", "(probs[i, pairs[:, 0]] * probs[j, pairs[:, 1]]).sum()", "(probs[i] * probs[j]).sum()",
     "both draw the same token"),
    ("12", ".unique(dim=0)", "", "once for each of them.*each pair once"),
    ("12", "(probs[i, pairs[:, 0]] * probs[j, pairs[:, 1]]).sum()", "1.0", "not drawn from a"),
    ("12", "(probs[i, pairs[:, 0]] * probs[j, pairs[:, 1]]).sum()", "probs[i].max() * "
     "probs[j].max()", "likeliest pair alone"),
    ("12", "(probs[i, pairs[:, 0]] * probs[j, pairs[:, 1]]).sum()",
     "1 - (probs[i, pairs[:, 0]] * probs[j, pairs[:, 1]]).sum()", "do NOT fit"),
    ("12", "probs = posterior(captions, odds, tokens, mask_id)",
     "tokens = torch.full_like(tokens, mask_id)\n"
     "    probs = posterior(captions, odds, tokens, mask_id)", "leaves out what is committed"),
    ("12", "(probs[i, pairs[:, 0]] * probs[j, pairs[:, 1]]).sum()",
     "(probs[i, pairs[:, 0]] * probs[j, pairs[:, 1]])", "must return a number, not Tensor of sh"),
    ("13", "odds * (", "1.0 * (", "count the same in yours"),
    ("13", "odds * ((captions == tokens) | (tokens == mask_id)).all(1)", "odds",
     "as if nothing were committed"),
    ("13", "torch.special.entr(probs).sum()", "torch.special.entr(probs).sum() / 0.6931472",
     "joint_error is .*in bits"),
    ("13", "torch.special.entr(probs).sum()", "-(probs * probs.log()).sum()",
     "0 \\* log\\(0\\) is no number"),
    ("13", "index_add(0, outcome, weight / weight.sum())",
     "index_add(0, torch.arange(len(captions)) if len(places) > 1 else outcome, weight / "
     "weight.sum())", "entropy of whole captions"),
    ("13", "- entropy(*scene, places)", "- single(*scene, places=places).max()",
     "the other of the two"),
    ("13", "return single(*scene, places=places).sum() - entropy(*scene, places)",
     "return entropy(*scene, places)", "entropy of all words together"),
    ("13", "return single(*scene, places=places).sum() - entropy(*scene, places)",
     "return sum(single(*scene, places=[i, j]).sum() - entropy(*scene, [i, j]) for n, i in "
     "enumerate(places) for j in places[:n])", "what each pair shares"),
    ("13", "single(*scene, places=places).sum() - entropy(*scene, places)",
     "entropy(*scene, places) - single(*scene, places=places).sum()", "The sign"),
    ("13", "entropies.sum() - entropies.max()", "entropies.sum()", "nothing is subtracted"),
    ("13", "entropies.max()", "entropies.min()", "the smallest entropy"),
    ("13", "entropies.sum() - entropies.max()", "entropies.max()", "largest entropy itself"),
    ("13", "return torch.special.entr(torch.tensor([p, 1 - p])).sum()",
     "return torch.log(torch.tensor(2.0))", "ln 2, for even odds"),
    ("13", "torch.special.entr(torch.tensor([p, 1 - p])).sum()",
     "2 * torch.special.entr(torch.tensor([p, 1 - p])).sum()", "the sum of both entropies"),
    ("13", "torch.special.entr(torch.tensor([p, 1 - p])).sum()", "-torch.tensor(p).log()",
     "what one of the choices tells"),
    ("13", "torch.special.entr(torch.tensor([p, 1 - p])).sum()",
     "torch.special.entr(torch.tensor([p, 1 - p])).sum() / 0.6931472", "breaks_at.*in bits"),
]


@pytest.mark.parametrize("start, old, new, lesson", MISTAKES)
def test_a_well_known_mistake_fails_with_its_lesson(start, old, new, lesson):
    assert_lesson(start, old, new, lesson)


OTHERS = {  # right answers that are not like ours
    "12": ["""
import torch
import torch.nn.functional as F
def posterior(captions, odds, tokens, mask_id):
    known = tokens != mask_id
    agrees = (captions[:, known] == tokens[known]).all(1)
    weight = odds[agrees].double()
    hot = F.one_hot(captions[agrees], mask_id + 1).double()
    return torch.einsum("n,nwv->wv", weight / weight.sum(), hot)
def survives(captions, odds, tokens, mask_id, i, j):
    total, probs = 0.0, posterior(captions, odds, tokens, mask_id)
    for a in set(captions[:, i].tolist()):
        for b in set(captions[:, j].tolist()):
            both = tokens.clone()
            both[i], both[j] = a, b
            known = both != mask_id
            if (captions[:, known] == both[known]).all(1).any():
                total += probs[i, a].item() * probs[j, b].item()
    return total
""", """
import torch
def kept(captions, odds, tokens, mask_id):
    for caption, share in zip(captions.tolist(), odds.tolist()):
        if all(t in (c, mask_id) for c, t in zip(caption, tokens.tolist())):
            yield caption, share
def posterior(captions, odds, tokens, mask_id):
    probs = torch.zeros(captions.shape[1], mask_id + 1)
    for caption, share in kept(captions, odds, tokens, mask_id):
        for i, token in enumerate(caption):
            probs[i, token] += share
    return probs / probs[0].sum()
def survives(captions, odds, tokens, mask_id, i, j):
    probs = posterior(captions, odds, tokens, mask_id)
    fits = torch.zeros(mask_id + 1, mask_id + 1)
    for caption, _ in kept(captions, odds, tokens, mask_id):
        fits[caption[i], caption[j]] = 1
    return probs[i] @ fits @ probs[j]
"""],
    "13": ["""
import math
from collections import Counter
def outcomes(captions, odds, tokens, mask_id, places):
    found = Counter()
    for caption, share in zip(captions.tolist(), odds.tolist()):
        if all(t in (c, mask_id) for c, t in zip(caption, tokens.tolist())):
            found[tuple(caption[i] for i in places)] += share
    return {key: share / sum(found.values()) for key, share in found.items()}
def joint_error(captions, odds, tokens, mask_id, places):
    scene = captions, odds, tokens, mask_id
    joint = outcomes(*scene, places)
    alone = [outcomes(*scene, [i]) for i in places]
    return sum(p * math.log(p / math.prod(q[(token,)] for q, token in zip(alone, key)))
               for key, p in joint.items())
def bound(captions, odds, tokens, mask_id, places):
    each = sorted(-sum(p * math.log(p) for p in outcomes(
        captions, odds, tokens, mask_id, [i]).values()) for i in places)
    return sum(each[:-1])
def breaks_at(p):
    return p * math.log(1 / p) + (1 - p) * math.log(1 / (1 - p))
""", """
import torch
from torch.distributions import Categorical
def marginal(captions, odds, tokens, mask_id, i):
    known = tokens != mask_id
    weight = odds * (captions[:, known] == tokens[known]).all(1)
    return torch.zeros(mask_id + 1).index_add(0, captions[:, i], weight) / weight.sum()
def joint_error(captions, odds, tokens, mask_id, places):  # by the chain rule
    error, tokens = 0.0, tokens.clone()
    for n, i in enumerate(places[1:], 1):
        alone = Categorical(marginal(captions, odds, tokens, mask_id, i)).entropy()
        before, rest = captions[:, places[:n]].unique(dim=0), 0.0
        for row in before:
            then = tokens.clone()
            then[places[:n]] = row
            known = tokens != mask_id
            agrees = (captions[:, known] == tokens[known]).all(1)
            mine = agrees & (captions[:, places[:n]] == row).all(1)
            if mine.any():
                share = odds[mine].sum() / odds[agrees].sum()
                rest += share * Categorical(
                    marginal(captions, odds, then, mask_id, i)).entropy()
        error += alone - rest
    return error
def bound(captions, odds, tokens, mask_id, places):
    each = Categorical(torch.stack([
        marginal(captions, odds, tokens, mask_id, i) for i in places])).entropy()
    return each.sort().values[:-1].sum()
def breaks_at(p):
    return Categorical(torch.tensor([p, 1 - p])).entropy()
"""],
}


@pytest.mark.parametrize("start, source", [
    pytest.param(start, source, marks=[pytest.mark.slow] * (start == "13"))
    for start, sources in OTHERS.items() for source in sources])
def test_any_right_answer_passes(start, source):
    assert max(map(len, assert_passes(start, source).splitlines())) <= 100


def test_the_captions_are_all_right_ones_of_the_scene():
    some, (_, tokenizer) = exact_posterior.told(2, "free"), shipped()
    texts = [tokenizer.decode(ids) for ids in some.captions.tolist()]
    board = toy.TOYS["tiny"]._replace(order="free")
    scenes = {frozenset(toy.parse(text, board)) for text in texts}
    assert len(scenes) == 1 and len(set(texts)) == len(texts) == 4 * 2 * 4 * 2
    assert some.odds.sum().item() == pytest.approx(1)


def test_what_exercise_12_shows():
    shown = run(answer(named("12")))[1]
    assert re.search(r"4 and 5, of one wording +50.5% +(49|50|51|52).\d% +100.0%", shown)
    assert re.search(r"0 and 1, of one opening +25.0%.* 100.0%\n", shown)
    assert re.search(r"0 and 4, opening, wording +100.0% +100.0% +100.0%", shown)


@pytest.mark.slow
def test_entropy_bound_breaks_where_the_answer_of_exercise_13_says():
    below, above, _ = re.findall(r"eb_sampler:\d.\d+ +(\d+.\d)% right", run(answer(named("13")))[1])
    assert float(below) == 100 and float(above) < 50
