"""What the decoding loop guarantees, whatever the model, the window, the prior or the rule."""
import math
import random
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import (EOS, MASK, VOCAB, alone, decoded, random_case, random_inputs, random_model,
                      random_step, random_window, small_config)
from torch.utils._python_dispatch import TorchDispatchMode

from lab.variants import PrefixMasked
from mini_dimple import (MAX_POSITIONS, Dimple, Step, confident, confident_decoding, decode,
                         decode_ar, full, prefilled)

LOOKS = pytest.mark.parametrize("look", [prefilled, full])
FIELDS = ("tokens", "iterations", "passes", "left", "ends")  # of Decoded


def told(confidence, ids=range(EOS)):
    """A look that proposes ids[i] at place i with these confidences (B, W), whatever it sees."""
    B, W = confidence.shape
    ids = torch.tensor([ids[i] for i in range(W)]).expand(B, W)
    others = (1 - confidence) / (VOCAB - 2)  # all but this one and [MASK]
    probs = others[..., None].repeat(1, 1, VOCAB).scatter(2, ids[..., None], confidence[..., None])
    places = lambda tokens: torch.arange(tokens.shape[1]) % W  # over again where the window grows
    return lambda tokens, state=None: (probs.log()[:, places(tokens)], None)


def doubting(threshold, doubt):
    """Confident decoding that takes a token back, any number of times, when its probability falls
    below `doubt`."""
    def rule(step):
        own = step.probs.gather(-1, step.tokens[..., None]).squeeze(-1)
        window = step.commit(step.confidence > threshold)
        return window.masked_fill(~step.masked & (own < doubt), MASK)
    return rule


# ---------------------------------------------------------------- against a slow, obvious loop

def slow_decode(model, images, prompt, window, threshold, doubt, prefill, limit):
    """Each example by itself, one position at a time, in plain Python: confident decoding as the
    paper words it, and `doubting`. -> tokens, iterations, what the limit filled, a list each."""
    answers = []
    for b in range(len(window)):
        given, frozen, iterations, left = window[b].tolist(), None, 0, 0
        tokens, prefix = list(given), model.prefix(images[b:b + 1], prompt[b:b + 1])
        start = prefix.shape[1] - 1  # the last prompt token, which scores the window's first
        while MASK in tokens:
            x = torch.cat([prefix, model.embedding(torch.tensor([tokens]))], 1)
            if prefill and frozen:
                hidden, _ = model.transformer(x[:, start:], False, frozen)
            else:
                hidden, cache = model.transformer(x, False)
                hidden = hidden[:, start:]
                frozen = [(k[:, :, :start], v[:, :, :start]) for k, v in cache]
            chances = []  # of each id at each position, [MASK] excluded
            for row in model.head(hidden[0, :-1]).tolist():
                weights = [math.exp(logit - max(row)) * (i != MASK) for i, logit in enumerate(row)]
                chances.append([weight / sum(weights) for weight in weights])
            iterations += 1
            masks = [i for i, token in enumerate(tokens) if token == MASK]
            own = [i for i, token in enumerate(tokens) if token != MASK and given[i] == MASK]
            sure = [i for i in masks if max(chances[i]) > threshold]
            back = [i for i in own if chances[i][tokens[i]] < doubt]
            if iterations == limit:
                sure, back, left = masks, [], len(masks)
            if not sure:
                sure = [max(masks, key=lambda i: max(chances[i]))]
            for i in sure:
                tokens[i] = chances[i].index(max(chances[i]))
            for i in back:
                tokens[i] = MASK
        answers.append((tokens, iterations, left))
    return map(list, zip(*answers))


@LOOKS
def test_decoding_equals_a_literal_reading_of_the_paper(seed, look):
    model, taken_back, filled = random_model(seed, 0.4), 0, 0
    settings = (0.15, 0, 18), (0.5, 0, 18), (0.3, 0.05, 18), (0.2, 0.2, 7), (1, 0, 3)
    for number, (threshold, doubt, limit) in enumerate(settings):
        _, *inputs = random_case(100 * seed + number, 4, 9)
        rule = doubting(threshold, doubt)
        out = decoded(model, *inputs, rule, look, limit=limit)
        with torch.no_grad():
            tokens, iterations, left = slow_decode(model, *inputs, threshold, doubt,
                                                   look is prefilled, limit)
        assert out.tokens.tolist() == tokens and out.left.tolist() == left
        assert out.iterations.tolist() == out.passes.tolist() == iterations
        taken_back += sum(record.taken_back.sum().item() for record in out.trace)
        filled += sum(left)
    assert taken_back and filled, "the cases are hard enough"


@pytest.mark.parametrize("way", ["full", "prefilled", "ar"])
def test_a_batch_decodes_as_each_example_alone(seed, way):
    def run(model, images, prompt, window):
        if way == "ar":
            return decode_ar(model, images, prompt, 12)
        look = full if way == "full" else prefilled
        return decoded(model, images, prompt, window, doubting(0.3, 0.1), look, limit=10)
    case = random_case(seed, 24, 12)
    batch = run(*case)
    for b in range(24):
        one = run(*alone(case, b))
        for name in FIELDS:
            assert torch.equal(getattr(batch, name)[b:b + 1], getattr(one, name)), name
    assert len(batch.iterations.unique()) > 1, "the examples finish at different times"


def test_ar_sampled_at_a_temperature_has_the_models_odds():
    """Pairs of tokens, against softmax of logits computed anew."""
    model, images, prompt, _ = random_case(0, 1, 2, spread=0.3, priors=False)
    N, T, many = 5000, 1.5, lambda x: x.expand(5000, *x.shape[1:])
    out = decode_ar(model, many(images), many(prompt), 2, T, torch.Generator().manual_seed(0))
    again = decode_ar(model, many(images), many(prompt), 2, T, torch.Generator().manual_seed(0))
    assert torch.equal(out.tokens, again.tokens)
    firsts = torch.arange(MASK)[:, None]
    windows = torch.cat([firsts, firsts], 1)
    logits = model(images.expand(MASK, -1, -1, -1), prompt.expand(MASK, -1), windows, causal=True)
    logits[..., MASK] = -torch.inf
    first, second = (logits / T).softmax(-1).detach().unbind(1)
    second = torch.where(firsts == EOS, F.one_hot(torch.tensor(EOS), VOCAB), second)  # and no more
    wanted = (first[0, :MASK, None] * second).flatten()
    seen = torch.bincount(out.tokens @ torch.tensor([VOCAB, 1]), minlength=MASK * VOCAB) / N
    by_chance = (2 * wanted * (1 - wanted) / math.pi / N).sqrt().sum() / 2
    assert (seen - wanted).abs().sum() / 2 < 1.2 * by_chance
    assert (out.passes == torch.where(out.tokens[:, 0] == EOS, 1, 2)).all()


def test_prefilling_is_exact_for_a_model_with_a_prefix_mask(seed):
    """With full attention it is so in the first iteration, and an approximation later."""
    plain, *inputs = random_case(seed, 6, 12)
    for kind in (PrefixMasked, Dimple):
        model = kind(plain.config).double().eval()
        model.load_state_dict(plain.state_dict())
        kept, anew = (decoded(model, *inputs, confident(0.4), look) for look in (prefilled, full))
        first, *later = [(a.confidence - b.confidence).abs().max().item()
                         for a, b in zip(kept.trace, anew.trace)]
        assert first < 1e-9 and (max(later) < 1e-9 if kind is PrefixMasked else max(later) > 1e-4)
        assert torch.equal(kept.tokens, anew.tokens) or kind is Dimple


# ---------------------------------------------------------------- whatever the rule returns

def two_looks(step):
    """Verifies what it would commit with one more look."""
    step.rescore(step.look(step.commit(step.confidence > 0.3)))
    return step.confidence > 0.3


def second_best(step):
    step.propose(step.probs.topk(2).indices[..., 1])
    return step.confidence > 0.2


def wild_rules(rng):
    """Rules of all kinds, most of them nonsense; `decode` keeps its promises with each."""
    g = torch.Generator().manual_seed(rng.randrange(1000))

    def chance(step, p):
        return torch.rand(step.masked.shape, generator=g) < p

    def some_ids(step, W):
        return torch.randint(0, VOCAB, (len(step.tokens), W), generator=g)  # [MASK] among them

    def longer(step, id):
        return F.pad(step.commit(chance(step, 0.3)), (0, 2), value=id)
    positions = {
        "nothing": lambda step: torch.zeros_like(step.masked),
        "everything": lambda step: torch.ones_like(step.masked),
        "what is not masked": lambda step: ~step.masked,
        "what is given": lambda step: step.given,
        "at random": lambda step: chance(step, 0.3),
        "one example": lambda step: (torch.arange(len(step.masked)) == 0)[:, None] & step.masked,
        "confident": confident(rng.choice([1e-9, 0.05, 0.3, 0.9, 1.0])),
        "other proposals": second_best,
        "two looks": two_looks,
    }
    windows = {
        "masks for ever": lambda step: torch.full_like(step.tokens, MASK),
        "the window as it is": lambda step: step.tokens,
        "taken back": doubting(0.3, rng.choice([0.1, 0.5, 1.1])),
        "other ids": lambda step: some_ids(step, step.tokens.shape[1]),
        "any length": lambda step: some_ids(step, rng.randint(1, step.tokens.shape[1] + 3)),
        "longer": lambda step: longer(step, MASK) if step.iteration < 4 else step.masked,
        "words behind the end": lambda step: longer(step, 5),
        "no end": lambda step: longer(step, MASK),
        "one token": lambda step: step.commit(step.masked)[:, :1],
        "nothing is given": lambda step: step.given.zero_() + 3,  # the window 3 3 3 ...
    }
    return positions, windows


@pytest.mark.parametrize("number", range(12))
def test_guarantees_of_the_loop(number):
    rng = random.Random(number)
    B, W = rng.randint(1, 5), rng.randint(1, 12)
    model = random_model(number, rng.choice([0.1, 0.5, 1.5]))
    images, prompt, _ = random_inputs(number, B, W)
    positions, windows = wild_rules(rng)
    for name, rule in (positions | windows).items():
        window, calls = random_window(rng.random(), B, W), []
        before, limit = window.clone(), rng.choice([1, 3, 2 * W, 2 * W])

        def watched(*inputs, look=rng.choice([prefilled, full])):
            asked = look(*inputs)
            return lambda tokens, state: calls.append(tokens) or asked(tokens, state)
        out = decoded(model, images, prompt, window, rule, watched, limit=limit,
                      temperature=rng.choice([0, 0, 1e-40, 1.0, 50.0]),
                      generator=torch.Generator().manual_seed(number))
        assert torch.equal(window, before), "the caller's window is left alone"
        for row, given in zip(out.tokens.tolist(), window.tolist()):
            assert all(row[i] == token for i, token in enumerate(given) if token != MASK), name
        assert not (out.tokens == MASK).any() and out.tokens.max() < VOCAB, "nothing left to fill"
        assert len(calls) == out.passes.max() <= limit * (1 + (name == "two looks"))
        assert out.iterations.max() <= limit, "it ends in time"
        masks = (window == MASK).sum(1)
        assert torch.equal(out.iterations > 0, masks > 0)
        assert torch.equal(out.passes, out.iterations) or name == "two looks"
        assert (out.iterations <= masks).all() or name in windows, "at least one an iteration"
        check_trace(window, out, positions=name in positions)


def check_trace(window, out, positions):
    """The trace replays the decoding, and tells for each change what made it."""
    assert len(out.trace) == out.iterations.max()
    before = window
    for number, record in enumerate(out.trace):
        tokens, unfinished = record.tokens, (before == MASK).any(1)
        assert torch.equal(unfinished, number < out.iterations)
        assert {field.shape[:2] for field in record[:-2]} == {tokens.shape}
        finished = F.pad(before, (0, tokens.shape[1] - before.shape[1]), value=EOS)[~unfinished]
        assert torch.equal(tokens[~unfinished], finished), "finished examples stay"
        assert (before[~unfinished, tokens.shape[1]:] == EOS).all(), "nor are they cut"
        grown = F.pad(before, (0, tokens.shape[1] - before.shape[1]), value=MASK)
        changed = (tokens != grown) & unfinished[:, None]
        causes = record.by_rule, record.at_least_one, record.by_limit, record.taken_back
        assert torch.equal(sum(cause.long() for cause in causes), changed.long()), "one cause each"
        assert torch.equal(record.taken_back, changed & (tokens == MASK))
        assert (record.at_least_one.sum(1) <= 1).all()
        assert not record.by_limit.any() or number == len(out.trace) - 1
        if positions:
            assert torch.equal(changed.any(1), unfinished), "at least one of each unfinished"
            assert not (record.at_least_one.any(1) & record.by_rule.any(1)).any()
        before = tokens
    assert torch.equal(before, out.tokens)
    by_limit = out.trace[-1].by_limit.sum(1) if out.trace else torch.zeros_like(out.left)
    assert torch.equal(out.left, by_limit), "how many the limit filled"


def test_commit_takes_at_least_the_most_confident_of_each_unfinished_example(seed):
    step = random_step(seed)
    step.masked[3] = False
    step.confidence[2] -= 9  # a rule's own measure may be below 0
    for p in (0, 0.1, 0.5, 1):
        where = torch.rand(4, 9) < p
        window = step.commit(where)
        changed = window != step.tokens
        for b in range(4):
            masks = [i for i in range(9) if step.masked[b, i]]
            asked = [i for i in masks if where[b, i]]
            best = [max(masks, key=lambda i: step.confidence[b, i])] if masks else []
            assert changed[b].nonzero()[:, 0].tolist() == (asked or best)
            assert step.at_least_one[b].nonzero()[:, 0].tolist() == ([] if asked else best)
        assert torch.equal(window[changed], step.proposal[changed])


def test_a_name_that_is_gone_says_its_new_one(seed):
    with pytest.raises(AttributeError, match="step.rescore"):
        random_step(seed).score(None)


@pytest.mark.parametrize("threshold", [0, 1.0001, math.nan])
def test_thresholds_outside_0_1_are_refused(threshold):
    with pytest.raises(ValueError, match="threshold"):
        confident(threshold)


# ---------------------------------------------------------------- iterations, passes, limit


@pytest.mark.parametrize("longest", [4, 12])
def test_the_limit_is_twice_the_window_or_the_longest_trained_unless_said(longest):
    window = torch.tensor([[MASK] * 5, [1, 2, 3, MASK, MASK], [1, 2, 3, 4, 5]])
    out = decode(told(torch.full((3, 5), 0.3)), window, small_config(window=longest),
                 lambda step: step.tokens)
    limit = 2 * max(longest, 5)
    assert out.passes.tolist() == [limit, limit, 0] and out.left.tolist() == [5, 2, 0]
    assert out.tokens[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_the_limit_counts_iterations_not_the_rules_own_looks(limit):
    def looking(step):
        assert step.limit == limit
        for _ in range(3):
            step.look(step.tokens)
        return step.tokens
    window = torch.tensor([[MASK] * 5, [7] * 5])
    out = decode(told(torch.full((2, 5), 0.3)), window, small_config(), looking, limit=limit)
    assert out.iterations.tolist() == [limit, 0] and out.left.tolist() == [5, 0]
    passes = 4 * (limit - 1) + 1  # in the last the rule is not asked
    assert out.passes.tolist() == [passes, 0], "for unfinished examples only"


class Waits(TorchDispatchMode):
    """Counts what makes the CPU wait for a GPU: shapes that depend on a tensor's values, and
    numbers read out of it, but for `tolist`, which the mode does not see."""
    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.name()
        indices = arguments[1] if name == "aten::index.Tensor" else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        self.count += by_mask or name in (
            "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
        return function(*arguments, **(options or {}))


@LOOKS
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_pass_waits_for_a_gpu_once(look, temperature, monkeypatch):
    """For whether all are finished. (On a CPU, where nobody waits, a Step looks for NaN, too.)"""
    model, (images, prompt, _) = random_model(0), random_inputs(0, 4, 9)
    window, waits, tolist = torch.full((4, 9), MASK), Waits(), torch.Tensor.tolist
    window[1, 3:] = window[2, 5:] = 7

    def counted(x):
        waits.count += 1
        return tolist(x)
    with monkeypatch.context() as patch, waits:
        patch.setattr(torch.Tensor, "tolist", counted)
        patch.setattr(Step, "expect_numbers",
                      lambda step, values: setattr(step, "broken", values.isnan().any()))
        out = decoded(model, images, prompt, window, confident(0.4), look, temperature=temperature)
    assert len(out.passes.unique()) > 1, "they finish at different times"
    assert waits.count == 2 + out.passes.max(), "the door, each pass, the end"
    with Waits() as waits:
        window[window > 7], window.nonzero(), window.sum().item(), bool(window.any())
    assert waits.count == 4, "what waits is found"


# ---------------------------------------------------------------- windows that grow and shrink


@pytest.mark.parametrize("window, ids, shrunk", [
    ([[MASK] * 3, [MASK] * 3], [1, EOS, EOS], [[1], [1]]),  # what has ended loses nothing
    ([[MASK] * 3, [MASK] * 3], [1, 2, EOS], [[1, EOS], [1, 2]]),
    ([[MASK, 7, MASK], [MASK] * 3], [1, EOS, EOS], [[1, 7], [1, EOS]]),
    ([[MASK, MASK, EOS], [MASK] * 3], [1, EOS, EOS], [[1, EOS, EOS], [1, EOS, EOS]]),  # given
])
def test_a_window_shrinks_to_what_is_given_and_finished(window, ids, shrunk):
    """The second example finishes first; then the rule wants a single token."""
    def shrinking(step):
        return step.confidence > 0.5 if step.iteration == 0 else step.commit(step.masked)[:, :1]
    look = told(torch.tensor([[0.3, 0.3, 0.3], [0.9, 0.9, 0.9]]), ids)
    out = decode(look, torch.tensor(window), small_config(), shrinking)
    assert out.tokens.tolist() == shrunk
    assert torch.equal(out.ends, (out.tokens != EOS).sum(1))


# ---------------------------------------------------------------- what a rule can do with its step


def test_scores_and_proposals_of_the_rules_own(seed):
    """Other logits (guidance) set probabilities, proposals and confidences, without [MASK]; the
    caller's logits stay as they are."""
    step = random_step(seed)
    logits = 3 * torch.randn(4, 9, VOCAB, dtype=torch.double)
    logits[..., MASK] = 50
    before, wanted = logits.clone(), logits[..., :MASK].softmax(-1)
    step.rescore(logits)
    assert torch.equal(logits, before)
    torch.testing.assert_close(step.probs[..., :MASK], wanted)
    torch.testing.assert_close(step.confidence, wanted.amax(-1))
    assert torch.equal(step.proposal, wanted.argmax(-1)) and not step.probs[..., MASK].any()
    best, second = wanted.topk(2).indices.unbind(-1)
    step.propose(second)
    torch.testing.assert_close(step.confidence, wanted.topk(2).values[..., 1])
    assert torch.equal(step.commit(step.masked)[step.masked], second[step.masked])


def test_guidance_by_a_second_look(seed):
    """Away from what the model says without the given words: classifier-free guidance."""
    model, images, prompt, window = case = random_case(seed, 6, 8)
    empty, seen = torch.full((6, 8), MASK), []

    def guided(step):
        step.rescore(2 * step.logits - step.look(empty))
        seen.append(step.probs)
        return step.confidence > 0.5
    out = decoded(*case, guided, full)
    a, b = (model(images, prompt, tokens, causal=False)[..., :MASK] for tokens in (window, empty))
    torch.testing.assert_close(seen[0][..., :MASK], (2 * a - b).softmax(-1))
    assert not (out.tokens == MASK).any() and torch.equal(out.passes, 2 * out.iterations)


def test_mask_is_never_proposed():
    def rule(step):
        assert not step.probs[..., MASK].any()
        assert (step.look(step.tokens)[..., MASK] == -torch.inf).all(), "nor by its own looks"
        return step.confidence > 0.01
    window = torch.full((2, 5), MASK)
    out = decode(told(torch.full((2, 5), 0.9), [MASK] * 5), window, small_config(), rule)
    assert not (out.tokens == MASK).any() and out.iterations.tolist() == [1, 1]


def test_memory_lives_as_long_as_the_decoding():
    seen = []

    def counting(step):
        step.memory["count"] = step.memory.get("count", 0) + 1
        seen.append(step.memory["count"])
        return step.confidence > 1
    for _ in range(2):
        decode(told(torch.full((2, 3), 0.3)), torch.full((2, 3), MASK), small_config(), counting)
    assert seen == [1, 2, 3, 1, 2, 3]


def test_a_rule_may_write_into_its_step(seed):
    """It harms nothing but its own choice: what follows is as if it had not. What its answer of
    positions commits is the step's own, and spared here."""
    def spoil(step, spared):
        for name, value in list(vars(step).items()):
            if isinstance(value, torch.Tensor) and name not in spared:
                value.numpy().fill(0)  # in a way that PyTorch cannot see
        window = torch.full((4, 8), MASK)
        step.look(window).zero_()
        window.zero_()

    def positions(step):
        choice = step.confidence > 0.3
        spoil(step, ("tokens", "masked", "proposal", "confidence", "raw_logits", "broken"))
        return choice

    def next_window(step):
        answer = step.commit(step.confidence > 0.3)
        for earlier in step.memory.setdefault("steps", []):
            earlier.tokens.zero_()
        spoil(step, ["broken"])
        step.memory["steps"].append(step)
        return answer
    *inputs, window = random_case(seed, 4, 8)
    wanted, *others = (decode(prefilled(*inputs), window, inputs[0].config, rule)
                       for rule in (confident(0.3), positions, next_window))
    for out in others:
        assert torch.equal(out.tokens, wanted.tokens)
        assert torch.equal(out.iterations, wanted.iterations)


# ---------------------------------------------------------------- trace, temperature, dtypes

def test_a_record_holds_the_ten_likeliest_words(seed):
    model, images, prompt, tokens = case = random_case(seed, 3, 7)
    for record in decoded(*case, confident(0.3), full).trace:
        probs = model(images, prompt, tokens, causal=False)[..., :MASK].softmax(-1)
        for b in range(3):
            for i in range(7):
                likeliest = sorted(range(MASK), key=lambda id: -probs[b, i, id])[:10]
                assert record.words[b, i].tolist() == likeliest
                torch.testing.assert_close(record.probs[b, i], probs[b, i, likeliest])
        assert torch.equal(record.proposal, probs.argmax(-1))
        torch.testing.assert_close(record.confidence, probs.amax(-1))
        tokens = record.tokens


def test_who_watches_is_told_each_iteration_and_changes_nothing(seed):
    model, images, prompt, window = random_case(seed, 3, 7)
    seen, look, rule = [], prefilled(model, images, prompt), doubting(0.3, 0.1)
    plain, out = (decode(look, window, model.config, rule, limit=5, watch=watch)
                  for watch in (None, lambda *iteration: seen.append(iteration)))
    for name in FIELDS:
        assert torch.equal(getattr(out, name), getattr(plain, name)), name
    steps, afters = zip(*seen)
    assert [step.iteration for step in steps] == list(range(out.iterations.max()))
    for step, after in zip(steps, (window, *afters)):
        assert torch.equal(step.tokens, after) and step.passes == 1 and step.limit == 5
    assert torch.equal(afters[-1], out.tokens)


def test_confidence_is_read_before_temperature_and_without_mask(seed):
    model, images, prompt, window = case = random_case(seed, 3, 6, priors=False)
    seen, g = [], torch.Generator().manual_seed(seed)

    def watch(step):
        seen.append(step)
        return step.masked
    decoded(*case, watch, temperature=30.0, generator=g)
    probs, proposal = model(images, prompt, window, False)[..., :MASK].softmax(-1), seen[0].proposal
    torch.testing.assert_close(seen[0].probs[..., :MASK], probs)
    torch.testing.assert_close(seen[0].confidence, probs.gather(-1, proposal[..., None])[..., 0])
    assert (proposal != probs.argmax(-1)).any(), "some proposals are not the most probable"


def test_temperature_samples_from_the_sharpened_distribution():
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    window, g = torch.full((4000, 1), MASK), torch.Generator().manual_seed(0)
    out = decode(lambda tokens, state: (logits.expand(4000, 1, VOCAB), None), window,
                 small_config(), temperature=2.0, generator=g)
    seen = torch.bincount(out.tokens[:, 0], minlength=MASK) / 4000
    wanted = (logits[:MASK] / 2).softmax(-1)
    torch.testing.assert_close(seen.double(), wanted, atol=0.03, rtol=0)


def test_a_generator_repeats_the_decoding_whatever_else_draws(seed):
    """A rule's own draws, too, if they come from step.generator."""
    def rule(step):
        return torch.rand(step.masked.shape, generator=step.generator) < 0.4
    case, runs = random_case(seed, 8, 12, priors=False), []
    for number in (seed, seed, seed + 1):
        torch.rand(3)
        g = torch.Generator().manual_seed(number)
        runs.append(decoded(*case, rule, temperature=1.0, generator=g))
    assert torch.equal(runs[0].tokens, runs[1].tokens)
    assert torch.equal(runs[0].iterations, runs[1].iterations)
    assert not torch.equal(runs[0].tokens, runs[2].tokens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_confidences_are_as_fine_as_the_logits_allow(dtype):
    """bf16 has two values between 0.99 and 1: probabilities are computed in float32 or better."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 50, VOCAB, generator=g).mul(9).to(dtype)
    window, given = torch.full((8, 50), MASK), torch.zeros(8, 50, dtype=torch.bool)
    step = Step(0, 1, window, given, logits, lambda tokens: logits, MASK, EOS, {})
    exact = logits.double().index_fill(-1, torch.tensor(MASK), -torch.inf)
    torch.testing.assert_close(step.probs.double(), exact.softmax(-1), rtol=1e-5, atol=1e-7)
    assert step.confidence.dtype == (dtype if dtype == torch.float64 else torch.float32)
    sure = step.confidence[(step.confidence > 0.99) & (step.confidence < 1)]
    assert len(sure) > 50 and len(sure.unique()) > 0.8 * len(sure)


# ---------------------------------------------------------------- where a response ends

@pytest.mark.parametrize("free, word", [(9, None), (6, None), (6, 2), (3, 0), (0, None)])
def test_a_tail_fixed_to_eos_is_a_length_prior_not_text(free, word):
    """The response ends where its own first EOS stands, after the last given word: a given EOS is
    an end, not a word."""
    *inputs, window = random_case(0, 16, 9, priors=False)
    window[:, free:] = EOS
    if word is not None:
        window[:, word] = 7
    out = decoded(*inputs, window)
    for b in range(16):
        row, start = out.tokens[b].tolist(), 0 if word is None else word + 1
        assert out.response(b) == (row[:row.index(EOS, start)] if EOS in row[start:] else row)
        assert out.ends[b] <= free


def test_the_response_ends_at_its_first_eos_but_not_inside_the_prior():
    inputs = random_case(0, 3, 5)[:3]
    given = torch.tensor([[1, 2, EOS, 3, EOS], [1, EOS, EOS, EOS, EOS], [1, 2, 3, 4, 5]])
    out = decoded(*inputs, given)
    assert out.iterations.tolist() == [0, 0, 0] and out.tokens is not given
    assert [out.response(b) for b in range(3)] == [[1, 2, EOS, 3], [1], [1, 2, 3, 4, 5]]
    one_free = decoded(*inputs, torch.tensor([[EOS, 4, MASK]] * 3))
    assert all(one_free.response(b)[:2] == [EOS, 4] for b in range(3))


# ---------------------------------------------------------------- the doors

@pytest.mark.parametrize("way", [full, prefilled, decode_ar])
@pytest.mark.parametrize("which, change, named, got", [
    (0, lambda x: x / 255, "images", "torch.float32 (2, 3, 16, 16)"),
    (0, lambda x: x[..., :15], "images", "torch.uint8 (2, 3, 16, 15)"),
    (0, lambda x: x[:1], "prompt", "torch.int64 (2, 3)"),
    (1, lambda x: x[:, :0], "prompt", "torch.int64 (2, 0)"),
])
def test_pictures_and_prompts_that_the_model_cannot_read(way, which, change, named, got):
    model, *inputs, _ = random_case(0, 2, 6, priors=False)
    rest = [6] if way is decode_ar else []
    way(model, *inputs, *rest)  # as they are, they can be read
    inputs[which] = change(inputs[which])
    with pytest.raises(ValueError, match=re.escape(got)) as error:
        way(model, *inputs, *rest)
    assert str(error.value).startswith(named)


@pytest.mark.parametrize("change, options, named, got", [
    (lambda x: x.int(), {}, "window", "torch.int32 (2, 6)"),
    (lambda x: x[:, :0], {}, "window", "torch.int64 (2, 0)"),
    (lambda x: x + 1, {}, "window", "20 to 20"), (lambda x: -x, {}, "window", "-19 to -19"),
    (None, dict(temperature=-0.1), "temperature", "-0.1"),
    (None, dict(temperature=math.inf), "temperature", "inf"), (None, dict(limit=0), "limit", "0"),
])
def test_what_cannot_be_decoded(change, options, named, got):
    *inputs, window = random_case(0, 2, 6, priors=False)
    with pytest.raises(ValueError, match=re.escape(got)) as error:
        decoded(*inputs, change(window) if change else window, **options)
    assert str(error.value).startswith(named)


def test_a_window_as_long_as_positions_reach():
    longest = MAX_POSITIONS - 4 - 3
    *inputs, _ = random_case(0, 1, 6)
    window = torch.full((1, longest), 7)
    window[0, -1] = MASK
    assert decoded(*inputs, window).passes.item() == 1
    with pytest.raises(ValueError, match=f"{MAX_POSITIONS} positions"):
        decoded(*inputs, F.pad(window, (0, 1), value=7))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_are_not_numbers_are_refused(wrong, temperature):
    """Those of a look, and those that a rule goes by: its 0/0 must not decode to the first id."""
    window, usual = torch.full((2, 5), MASK), told(torch.full((2, 5), 0.4))

    def broken(tokens, state):
        logits, _ = usual(tokens)
        logits[1, 3, slice(None) if wrong == -math.inf else 7] = wrong
        return logits, None

    def rule(step):
        if step.iteration == 2:
            step.rescore(broken(step.tokens, None)[0])
        return step.confidence > 0.9
    for look, of in ((broken, confident(0.9)), (usual, rule)):
        with pytest.raises(ValueError, match="got a NaN"):
            decode(look, window, small_config(), of, temperature)


# ---------------------------------------------------------------- looks and their states


@LOOKS
def test_a_look_changes_no_state_that_it_is_given(look, seed):
    """So a rule's looks ahead leave no trace, and one look decodes twice."""
    model, images, prompt, window = random_case(seed, 3, 8, priors=False)
    asked, others = look(model, images, prompt), random_window(seed, 3, 8)
    _, state = asked(window, None)
    first, _ = asked(others, state)
    asked(window + 0, state)
    again, _ = asked(others, state)
    assert torch.equal(first, again)

    def looking(step):
        step.look(torch.full_like(step.tokens, 3))
        return step.confidence > 0.3
    wanted = decode(asked, window, model.config, confident(0.3))
    for rule in (looking, confident(0.3)):
        assert torch.equal(decode(asked, window, model.config, rule).tokens, wanted.tokens)


def test_a_state_goes_from_each_pass_to_the_next_and_to_the_rules_own_looks():
    """A rule's look ahead is given the newest state, and what it makes of it is dropped."""
    usual, seen = told(torch.full((2, 5), 0.3)), []

    def look(tokens, state):
        seen.append(state)
        return usual(tokens)[0], (state or 0) + 1

    def looking(step):
        step.look(step.tokens)
        return step.confidence > 0.9
    decode(look, torch.full((2, 5), MASK), small_config(), looking)
    assert seen == [None, 1, 1, 2, 2, 3, 3, 4, 4, 5]


@LOOKS
@pytest.mark.parametrize("threshold", [0.4, 1])
def test_the_papers_loop_commits_what_decode_commits(look, threshold, seed):
    model, images, prompt, window = random_case(seed, 16, 12)
    asked = look(model, images, prompt)
    wanted = decode(asked, window, model.config, confident(threshold)).tokens
    assert torch.equal(confident_decoding(asked, window, MASK, threshold), wanted)


# ---------------------------------------------------------------- nothing to compile anew

@pytest.mark.parametrize("look, most", [(full, 1), (prefilled, 2)])
def test_passes_have_the_same_shapes_while_examples_finish(look, most):
    """What `torch.compile` sees of `Dimple.logits`: with `prefilled` the first pass and all others,
    with `full` a single one."""
    model, *inputs = random_case(0, 32, 12)
    seen, logits = [], model.logits

    def watched(prefix, response, causal, past=None):
        shapes = past and tuple((k.shape, v.shape) for k, v in past)
        seen.append((prefix.shape, response.shape, causal, shapes))
        return logits(prefix, response, causal, past)
    model.logits = watched
    out = decoded(model, *inputs, confident(0.4), look)
    assert len(seen) == out.passes.max() and len(out.passes.unique()) > 2, "they finish one by one"
    assert len(set(seen)) == most
