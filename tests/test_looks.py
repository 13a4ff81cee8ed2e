"""Looks that keep states: what each computes anew, and that a state is never changed."""
import copy

import pytest
import torch
from conftest import EOS, MASK, alone, decoded, random_case, random_inputs, random_model

import looks
from looks import Kept, keeping, positions
from mini_dimple import decode_ar, full, prefilled
from rules import named, resolve, resolve_look

LOOKS = ("changed:0.9", "changed:sure=0.5,every=3", "dkv_cache:2", "dkv_cache:0", "block_cache:4",
         "block_cache:size=4,dual=1", "block_cache:size=5,refresh=0")
WHICH = {  # what is named -> the look that it must equal
    full: lambda kept: torch.ones_like(kept.scores[..., 0], dtype=torch.bool),
    prefilled: lambda kept: kept.states(kept.tokens >= 0) | kept.scorers(kept.tokens >= 0)}


def tensors(state):
    """All tensors of a state."""
    parts = state if isinstance(state, (tuple, list)) else ()
    return [state] if isinstance(state, torch.Tensor) else [x for part in parts
                                                            for x in tensors(part)]


def test_all_are_tried():
    names = {text.split(":")[0] for text in LOOKS}
    assert names == set(named("look")) - {"full", "prefilled", "left"}


@pytest.mark.parametrize("plain", WHICH)
def test_keeping_equals_the_plain_look_that_computes_the_same(plain, seed):
    mine = lambda *inputs: keeping(*inputs, WHICH[plain])
    runs = [decoded(*random_case(seed, 6, 12), resolve("remask:0.4"), look, limit=9)
            for look in (mine, plain)]
    assert len(runs[0].trace) > 3
    for kept, anew in zip(*(run.trace for run in runs)):
        assert torch.allclose(kept.probs, anew.probs, atol=1e-9)
        assert torch.equal(kept.tokens, anew.tokens)


def test_keeping_everything_equals_full_causally(seed):
    mine = lambda *inputs: keeping(*inputs, WHICH[full], causal=True)
    runs = [decoded(*random_case(seed, 6, 12), resolve("remask:0.4"), look, limit=9)
            for look in (mine, lambda *inputs: full(*inputs, causal=True))]
    for kept, anew in zip(*(run.trace for run in runs)):
        assert torch.allclose(kept.probs, anew.probs, atol=1e-9)


def test_what_is_not_named_is_as_it_was(seed):
    """Keys, values and logits of other positions."""
    model, images, prompt, window = random_case(seed, 3, 8, priors=False)
    need = torch.rand(3, 15, generator=torch.Generator().manual_seed(seed)) < 0.4
    need[2] = False
    need[2, 9] = True
    look = keeping(model, images, prompt, lambda kept: need)
    _, first = look(window)
    _, second = look(torch.full_like(window, 3), first)
    same = lambda a, b, rows: torch.equal(a.transpose(1, 2)[rows], b.transpose(1, 2)[rows])
    for (k, v), (new_k, new_v) in zip(first.cache, second.cache):
        assert same(k, new_k, ~need) and same(v, new_v, ~need)
    assert torch.equal(first.scores[~need], second.scores[~need])
    assert torch.equal(second.inputs == 3, need[:, 7:])


@pytest.mark.parametrize("count", [0, 1, 4])
def test_positions_of_a_row(count):
    need = torch.zeros(2, 6, dtype=torch.bool)
    need[0, [1, 2, 3, 5]] = True
    need[1, torch.tensor([4, 0, 5, 2])[:count]] = True
    at = positions(need)
    assert at[0].tolist() == [1, 2, 3, 5]
    wanted = need[1].nonzero()[:, 0].tolist() or [0]
    assert sorted(set(at[1].tolist())) == wanted and at[1, 0] == wanted[0]


@pytest.mark.parametrize("text", LOOKS)
def test_a_batch_decodes_as_each_example_alone(text, seed):
    case, look = random_case(seed, 8, 12), resolve_look(text)
    batch = decoded(*case, resolve("eb_sampler:0.7"), look)
    for b in range(8):
        one = decoded(*alone(case, b), resolve("eb_sampler:0.7"), look)
        assert torch.equal(batch.tokens[b:b + 1], one.tokens)
        assert torch.equal(batch.passes[b:b + 1], one.passes)


@pytest.mark.parametrize("text", [*LOOKS, "left", "full", "prefilled"])
def test_a_look_never_changes_the_state_that_it_is_given(text, seed):
    """Nor does its answer depend on looks ahead."""
    model, images, prompt, window = random_case(seed, 4, 12)
    look = resolve_look(text)(model, images, prompt)
    _, state = look(window)
    some = torch.where(torch.arange(12) % 3 == 0, seed % EOS, window)
    _, state = look(some, state)
    before = copy.deepcopy(tensors(state))
    other = torch.full_like(window, 5)
    wanted = look(other, state)[0].clone()
    look(torch.full_like(window, 7), state)
    look(some[:, :7], state)
    assert torch.equal(look(other, state)[0], wanted)
    assert all(map(torch.equal, before, tensors(state)))


@pytest.mark.parametrize("text", LOOKS)
def test_every_look_with_every_rule(text):
    """Ends, and leaves no mask."""
    case = random_case(1, 3, 12)
    for name in named():
        out = decoded(*case, resolve(name), resolve_look(text))
        assert not (out.tokens == MASK).any(), name


def test_what_each_computes_anew(monkeypatch):
    """A window of 8 after 7 positions of prefix: token i is scored at position 6 + i, its own state
    is at 7 + i. Committed long ago: 0 (a surprise), 1 (as expected); just now: 2, 3; the rest is
    masked."""
    tokens, inputs = (torch.tensor([row]) for row in (
        [1, 2, 3, 4] + [MASK] * 4, [1, 2] + [MASK] * 6))
    before = inputs
    scores = torch.zeros(1, 15, 20)
    scores[0, 8, 3] = 20  # token 2 was expected, token 3 was not
    kept = Kept(tokens, before, inputs, scores, [], 4, 7, MASK)
    everything = {*range(15)}
    masks = {*range(10, 15)}  # the scorers of 4 to 7, and their own states
    named = []
    monkeypatch.setattr(looks, "keeping", lambda *inputs, **options: named.append(inputs[-1]))
    for text, more in {"changed": {10}, "changed:1": {9, 10}, "changed:0.9,4": everything,
                       "dkv_cache:0": {9, 10}, "dkv_cache:2": everything,
                       "block_cache:2": {9, 10} | everything, "block_cache:4,refresh=0": set(),
                       }.items():
        resolve_look(text)(random_model(0), *random_inputs(0, 1, 8)[:2])
        assert set(named[-1](kept)[0].nonzero()[:, 0].tolist()) == masks | more, text
    resolve_look("block_cache:2,dual=1,refresh=0")(random_model(0), *random_inputs(0, 1, 8)[:2])
    assert set(named[-1](kept)[0].nonzero()[:, 0].tolist()) == {10, 11, 12}


# ---------------------------------------------------------------- the AR phase

def test_left_equals_the_ar_baseline(seed):
    model, images, prompt, window = random_case(seed, 6, 12, priors=False)
    wanted = decode_ar(model, images, prompt, 12)
    out = decoded(model, images, prompt, window, resolve("left_to_right:1"), resolve_look("left"))
    for b in range(6):
        assert out.response(b) == wanted.response(b)


def test_left_is_exact_after_drafts_that_were_rejected(seed):
    """Also where the same draft is proposed again later, right of another change."""
    model, images, prompt, _ = random_case(seed, 2, 8)
    look = resolve_look("left")(model, images, prompt)
    exact, state = full(model, images, prompt, causal=True), None
    g = torch.Generator().manual_seed(seed)
    drafts = torch.randint(0, EOS, (2, 8), generator=g)
    for turn in range(12):
        length, changed = torch.randint(1, 8, (2,), generator=g).tolist()
        if changed < length:  # a draft is rejected; those right of it are proposed again later
            drafts[:, changed] = turn
        tokens = torch.where(torch.arange(8) < length, drafts, MASK)
        logits, state = look(tokens, state)
        # all that is scored by a token before the first mask
        assert torch.allclose(logits[:, :length + 1], exact(tokens)[0][:, :length + 1], atol=1e-9)


# ---------------------------------------------------------------- from the command line

@pytest.mark.parametrize("text, named", [
    ("changed:0.5,1,2", "takes sure=0.9, every=0"), ("changed:x", "'x' is not a number"),
    ("changed:size=3", "unexpected keyword"), ("nothing:3", "choose one of prefilled, full, "),
    ("full:3", "choose one of")])
def test_numbers_that_do_not_fit(text, named):
    with pytest.raises(ValueError) as error:
        resolve_look(text)
    assert str(error.value).startswith(f"--look {text}: ") and named in str(error.value)
