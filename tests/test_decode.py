"""What the decoding loop guarantees, whatever the model, the window, the prior or the rule."""
import random

import pytest
import torch
from conftest import EOS, MASK, random_inputs, random_model

from mini_dimple import RuleError, confident, decode, decode_ar, propose


def random_window(rng, B, W):
    """Windows with priors: each position given (any ordinary token, EOS too) with a probability of the case's own."""
    share = rng.choice([0, 0, 0.2, 0.6, 1])
    return torch.tensor([[rng.randrange(MASK) if rng.random() < share else MASK for _ in range(W)] for _ in range(B)])


def wild_rules(rng):
    g = torch.Generator().manual_seed(rng.randrange(1000))
    yield "nothing", lambda step: torch.zeros_like(step.masked)
    yield "everything", lambda step: torch.ones_like(step.masked)
    yield "what is not masked", lambda step: ~step.masked
    yield "what is given", lambda step: step.given
    yield "at random", lambda step: torch.rand(step.masked.shape, generator=g) < 0.3
    yield "first example only", lambda step: step.masked & (torch.arange(len(step.masked)) == 0)[:, None]
    yield "confident", confident(rng.choice([1e-9, 0.05, 0.3, 0.9, 1.0]))


@pytest.mark.parametrize("case", range(25))
def test_guarantees_of_the_loop(case):
    rng = random.Random(case)
    B, W = rng.randint(1, 5), rng.randint(1, 12)
    model, (images, prompt, _) = random_model(case, rng.choice([0.1, 0.5, 1.5])), random_inputs(case, B, W)
    for name, rule in wild_rules(rng):
        window = random_window(rng, B, W)
        before = window.clone()
        out = decode(model, images, prompt, window, rule, prefill=rng.random() < 0.5, temperature=rng.choice([0, 0, 1e-40, 1.0, 50.0]),
                     generator=torch.Generator().manual_seed(case), trace=True)
        assert torch.equal(window, before), "the caller's window is left alone"
        given, masks = window != MASK, (window == MASK).sum(1)
        assert torch.equal(out.tokens[given], window[given]), "given tokens never change"
        assert not (out.tokens == MASK).any(), "[MASK] is never proposed nor left"
        assert (out.iterations <= masks).all() and ((out.iterations > 0) == (masks > 0)).all()
        assert len(out.trace) == out.iterations.max()
        tokens = window
        for number, line in enumerate(out.trace):
            unfinished = (tokens == MASK).any(1)
            assert torch.equal(line.committed.any(1), unfinished), "at least one commit per unfinished example"
            assert not line.committed[tokens != MASK].any(), "only masked positions are committed"
            assert torch.equal(line.tokens[~line.committed], tokens[~line.committed]), "committed tokens never change"
            assert torch.equal(unfinished, number < out.iterations)
            tokens = line.tokens
        assert torch.equal(tokens, out.tokens)


@pytest.mark.parametrize("prefill", [True, False])
def test_a_batch_decodes_as_each_example_alone(seed, prefill):
    model, (images, prompt, _) = random_model(seed), random_inputs(seed, 64, 12)
    window = random_window(random.Random(seed + 1), 64, 12)
    for threshold in (0.1, 0.4, 1.0):
        batch = decode(model, images, prompt, window, confident(threshold), prefill)
        for b in range(64):
            one = slice(b, b + 1)
            alone = decode(model, images[one], prompt[one], window[one], confident(threshold), prefill)
            assert torch.equal(batch.tokens[one], alone.tokens) and torch.equal(batch.iterations[one], alone.iterations)
    batch = decode_ar(model, images, prompt, 12)
    for b in range(64):
        alone = decode_ar(model, images[b:b + 1], prompt[b:b + 1], 12)
        assert torch.equal(batch.tokens[b:b + 1], alone.tokens) and batch.iterations[b] == alone.iterations[0]


def slow_decode(model, images, prompt, window, threshold, prefill):
    """One example, one position at a time, in plain Python: confident decoding as the paper words it."""
    tokens, iterations, frozen = window[0].tolist(), 0, None
    prefix = model.prefix(images, prompt)
    while MASK in tokens:
        x = torch.cat([prefix, model.embedding(torch.tensor([tokens]))], 1)
        if prefill and frozen is not None:  # layer by layer: positions before the last prompt token keep their keys and values
            start, cache = prefix.shape[1] - 1, frozen
            hidden, _ = model.transformer(x[:, start:], False, cache)
            logits = model.head(hidden[:, :-1])[0]
        else:
            hidden, cache = model.transformer(x, False)
            frozen = [(k[:, :, :prefix.shape[1] - 1], v[:, :, :prefix.shape[1] - 1]) for k, v in cache]
            logits = model.head(hidden[:, prefix.shape[1] - 1:-1])[0]
        iterations += 1
        best, commits = None, []
        for i, token in enumerate(tokens):
            if token == MASK:
                row = [-float("inf") if v == MASK else logits[i, v].item() for v in range(20)]
                norm = sum(torch.tensor(row).sub(max(row)).exp().tolist())
                proposal = max(range(20), key=row.__getitem__)
                confidence = 1 / norm
                if best is None or confidence > best[0]:
                    best = confidence, i, proposal
                if confidence > threshold:
                    commits.append((confidence, i, proposal))
        for _, i, proposal in commits or [best]:
            tokens[i] = proposal
    return tokens, iterations


@pytest.mark.parametrize("prefill", [True, False])
def test_decoding_equals_a_literal_reading_of_the_paper(seed, prefill):
    model = random_model(seed, 0.4)
    for case in range(6):
        images, prompt, _ = random_inputs(100 * seed + case, 1, 9)
        window = random_window(random.Random(case), 1, 9)
        for threshold in (0.15, 0.5):
            out = decode(model, images, prompt, window, confident(threshold), prefill)
            with torch.no_grad():
                tokens, iterations = slow_decode(model, images, prompt, window, threshold, prefill)
            assert out.tokens[0].tolist() == tokens and out.iterations.item() == iterations


def test_prefilling_changes_nothing_in_the_first_iteration_and_something_later(seed):
    model, (images, prompt, _) = random_model(seed), random_inputs(seed, 8, 12)
    window = torch.full((8, 12), MASK)
    kept, full = (decode(model, images, prompt, window, confident(1.0), prefill, trace=True) for prefill in (True, False))
    assert torch.equal(kept.trace[0].tokens, full.trace[0].tokens)
    assert any(not torch.allclose(a.confidence, b.confidence) for a, b in zip(kept.trace[1:], full.trace[1:]))


def test_threshold_one_commits_one_token_at_a_time_the_most_confident_first(seed):
    model, (images, prompt, _) = random_model(seed), random_inputs(seed, 4, 9)
    out = decode(model, images, prompt, torch.full((4, 9), MASK), confident(1.0), trace=True)
    assert out.iterations.tolist() == [9] * 4
    masked = torch.ones(4, 9, dtype=torch.bool)
    for line in out.trace:
        assert torch.equal(line.committed.float().argmax(1), line.confidence.masked_fill(~masked, -1).argmax(1))
        masked &= ~line.committed


@pytest.mark.parametrize("threshold", [0, -0.1, 1.0001, float("nan"), float("inf")])
def test_thresholds_outside_0_1_are_refused(threshold):
    with pytest.raises(ValueError, match="threshold"):
        confident(threshold)


def test_confidence_is_read_before_temperature_and_without_mask(seed):
    model, (images, prompt, _) = random_model(seed), random_inputs(seed, 3, 6)
    window, seen = torch.full((3, 6), MASK), []
    def watch(step):
        seen.append(step)
        return step.masked
    decode(model, images, prompt, window, watch, temperature=30.0, generator=torch.Generator().manual_seed(seed))
    logits = model(images, prompt, window, causal=False)[..., :MASK]  # [MASK] is the last id
    probs = logits.softmax(-1)
    torch.testing.assert_close(seen[0].probs[..., :MASK], probs)
    torch.testing.assert_close(seen[0].confidence, probs.gather(-1, seen[0].proposal[..., None])[..., 0])
    assert (seen[0].proposal != probs.argmax(-1)).any(), "at temperature 30 some proposals are not the most probable"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_confidences_are_as_fine_as_the_logits_allow(dtype, seed):
    """bf16 has two values between 0.99 and 1: probabilities are computed in float32, whatever the logits are."""
    logits = torch.randn(8, 50, 20, generator=torch.Generator().manual_seed(seed)).mul(9).to(dtype)
    proposal, confidence, probs = propose(logits.clone(), MASK)
    exact = logits.double()
    exact[..., MASK] = -torch.inf
    torch.testing.assert_close(probs.double(), exact.softmax(-1), rtol=1e-5, atol=1e-7)
    assert torch.equal(proposal, exact.argmax(-1)) and confidence.dtype == torch.float32
    sure = confidence[(confidence > 0.99) & (confidence < 1)]
    assert len(sure) > 50 and len(sure.unique()) > 0.8 * len(sure)
    assert propose(exact.clone(), MASK)[1].dtype == torch.float64, "nor less than they are"


def test_temperature_samples_from_the_sharpened_distribution():
    model, (images, prompt, _) = random_model(1, 0.3), random_inputs(1, 1, 1)
    images, prompt = images.expand(4000, -1, -1, -1), prompt.expand(4000, -1)
    out = decode(model, images, prompt, torch.full((4000, 1), MASK), temperature=2.0, generator=torch.Generator().manual_seed(0))
    logits = model(images[:1], prompt[:1], torch.tensor([[MASK]]), causal=False)[0, 0, :MASK]
    seen = torch.bincount(out.tokens[:, 0], minlength=MASK) / 4000
    torch.testing.assert_close(seen.double(), (logits / 2).softmax(-1), atol=0.03, rtol=0)


@pytest.mark.parametrize("answer", [None, 1, torch.ones(2, 5), torch.ones(5, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)])
def test_a_rule_that_returns_something_else_is_named(answer):
    def my_rule(step):
        return answer
    images, prompt, _ = random_inputs(0, 2, 5)
    with pytest.raises(RuleError, match=r"my_rule.*bool tensor of shape \(2, 5\)"):
        decode(random_model(0), images, prompt, torch.full((2, 5), MASK), my_rule)


@pytest.mark.parametrize("field", ["tokens", "masked", "given", "proposal", "confidence", "probs"])
def test_a_rule_that_writes_into_the_step_is_named(field):
    def my_rule(step):
        getattr(step, field).zero_()
        return step.masked
    images, prompt, _ = random_inputs(0, 2, 5)
    with pytest.raises(RuleError, match="'my_rule' writes into the step"):
        decode(random_model(0), images, prompt, torch.full((2, 5), MASK), my_rule)
    model = random_model(0)
    with torch.inference_mode(), pytest.raises(RuleError, match="'my_rule' writes into the step"):
        decode(model, images, prompt, torch.full((2, 5), MASK), my_rule)


def test_a_write_that_pytorch_cannot_see_harms_nothing():
    def hidden(step):
        choice = step.confidence > 0.3
        for tensor in step[1:]:
            tensor.numpy()[:] = 0
        return choice
    model, (images, prompt, _) = random_model(0), random_inputs(0, 4, 8)
    window = torch.full((4, 8), MASK)
    assert torch.equal(decode(model, images, prompt, window, hidden).tokens, decode(model, images, prompt, window, confident(0.3)).tokens)


def test_a_tail_fixed_to_eos_is_a_length_prior_not_text(seed):
    """The response ends where its own first EOS stands, after the last given word: a given EOS is an end, not a word."""
    model, (images, prompt, _) = random_model(seed), random_inputs(seed, 16, 9)
    for free, word in ((9, None), (6, None), (6, 2), (3, None), (3, 0), (0, None)):
        window = torch.full((16, 9), MASK)
        window[:, free:] = EOS
        if word is not None:
            window[:, word] = 7
        out = decode(model, images, prompt, window)
        for b in range(16):
            row, start = out.tokens[b].tolist(), 0 if word is None else word + 1
            assert out.response(b) == (row[:row.index(EOS, start)] if EOS in row[start:] else row)
            assert out.ends[b] <= free


def test_the_response_ends_at_its_first_eos_but_not_inside_the_prior():
    model, (images, prompt, _) = random_model(0), random_inputs(0, 3, 5)
    window = torch.tensor([[1, 2, EOS, 3, EOS], [1, EOS, EOS, EOS, EOS], [1, 2, 3, 4, 5]])
    out = decode(model, images, prompt, window)
    assert out.iterations.tolist() == [0, 0, 0]
    assert [out.response(b) for b in range(3)] == [[1, 2, EOS, 3], [1], [1, 2, 3, 4, 5]]  # all given
    one_free = decode(model, images, prompt, torch.tensor([[EOS, 4, MASK]] * 3))
    assert all(one_free.response(b)[:2] == [EOS, 4] for b in range(3))
    free = decode(model, images, prompt, torch.full((3, 5), MASK))
    for b in range(3):
        row = free.tokens[b].tolist()
        assert free.response(b) == (row[:row.index(EOS)] if EOS in row else row)


def test_prefilling_is_exact_for_a_model_with_a_prefix_mask(seed):
    images, prompt, _ = random_inputs(seed, 6, 1)
    window = random_window(random.Random(seed), 6, 12)
    differs = []
    for prefix_mask in (True, False):
        model = random_model(seed, prefix_mask=prefix_mask)
        with_it, without = (decode(model, images, prompt, window, confident(0.4), prefill, trace=True) for prefill in (True, False))
        differs.append(max((a.confidence - b.confidence).abs().max().item() for a, b in zip(with_it.trace, without.trace)))
        if prefix_mask:
            assert torch.equal(with_it.tokens, without.tokens) and torch.equal(with_it.iterations, without.iterations)
    assert differs[0] < 1e-9 < 1e-4 < differs[1], "with full attention it is an approximation"
