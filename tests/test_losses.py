"""The losses against slow, obvious computations; the forward process; the schedule."""
import pytest
import torch
from conftest import EOS, MASK, random_inputs, random_model

from lab.variants import variant_loss
from mini_dimple import ar_loss, diffusion_loss, draw_t, forward_process, schedule


def log_prob(model, images, prompt, response, causal, b, i, token):
    """log p of one token at one response position, from the whole vocabulary's logits of that
    example alone."""
    one = slice(b, b + 1)
    sequence = torch.cat([prompt[one], response[one]], 1)
    x = torch.cat([model.projector(model.vit(images[one])), model.embedding(sequence)], 1)
    hidden, _ = model.transformer(x, causal)
    at = x.shape[1] - response.shape[1] + i - 1  # the position before the one scored
    return model.head(hidden[0, at]).log_softmax(-1)[token].item()


@pytest.mark.parametrize("variants", [(), ("flat",), ("example",), ("complementary",),
                                      ("flat", "complementary"), ("example", "complementary")])
def test_diffusion_losses_equal_a_slow_obvious_computation(seed, variants):
    """Equation (3) as the core has it, and its variants; complementary masks: of half the batch."""
    model, (images, prompt, response) = random_model(seed), random_inputs(seed, 5, 7)
    generator = torch.Generator().manual_seed(seed)
    inputs = model, images, prompt, response, generator
    loss = variant_loss(*inputs, variants) if variants else diffusion_loss(*inputs)

    n = 3 if "complementary" in variants else 5
    generator, response = torch.Generator().manual_seed(seed), response[:n]
    ts = draw_t(n, "cpu", generator)
    _, masked = forward_process(response, ts, MASK, generator)
    entries = [(b, masked[b].tolist(), ts[b].item()) for b in range(n)]
    if "complementary" in variants:
        entries += [(b, [not m for m in mask], max(1 - t, 1e-3)) for b, mask, t in entries]
    per_example, total, number = [], 0.0, 0
    for b, mask, t in entries:
        noisy = response.clone()
        noisy[b][torch.tensor(mask)] = MASK
        nll = [-log_prob(model, images, prompt, noisy, False, b, i, response[b, i])
               for i in range(7) if mask[i]]
        per_example.append(sum(nll) / (max(len(nll), 1) if "example" in variants else 7 * t))
        total, number = total + sum(nll), number + len(nll)
    wanted = total / number if "flat" in variants else sum(per_example) / len(per_example)
    assert loss.item() == pytest.approx(wanted, rel=1e-6)


def test_variants_of_data_and_model_leave_the_loss(seed):
    inputs = random_model(seed), *random_inputs(seed, 5, 7)
    losses = [loss(*inputs, torch.Generator().manual_seed(seed), *rest) for loss, *rest in (
        (diffusion_loss,), (variant_loss, ("unpadded", "prefix-mask")))]
    assert losses[0] == losses[1]


def test_ar_loss_scores_each_response_up_to_its_first_eos(seed):
    model, (images, prompt, response) = random_model(seed), random_inputs(seed, 3, 8)
    for b, length in enumerate((2, 5, 7)):
        response[b, length:] = EOS
    response[0, 5:] = 3  # what follows does not count
    nll = [-log_prob(model, images, prompt, response, True, b, i, response[b, i])
           for b, length in enumerate((2, 5, 7)) for i in range(length + 1)]
    loss = ar_loss(model, images, prompt, response)
    assert loss.item() == pytest.approx(sum(nll) / len(nll), rel=1e-9)


class Known(torch.nn.Module):
    """A model of two words whose -log p of word 0 is known: nll (B, W)."""

    def __init__(self, nll):
        super().__init__()
        self.nll, self.config = nll, random_model(0).config

    def forward(self, images, prompt, response, causal):
        p = torch.exp(-self.nll)
        return torch.stack([p, 1 - p], -1).log()


def loss_of_known(nll, masked, t, patch, variants=None):
    """A loss of responses of word 0, under this mask (B, W) and these levels (B,)."""
    zeros = torch.zeros_like(nll, dtype=torch.long)
    for module in ("mini_dimple", "lab.variants"):
        patch.setattr(f"{module}.draw_t", lambda *rest: t)
        patch.setattr(f"{module}.forward_process", lambda *rest: (zeros, masked))
    if variants is None:
        return diffusion_loss(Known(nll), zeros, zeros, zeros)
    return variant_loss(Known(nll), zeros, zeros, zeros, None, variants)


def test_an_example_with_no_masked_token_counts_zero(monkeypatch):
    nll, t = torch.full((2, 4), 0.5), torch.tensor([0.5, 0.5])
    masked = torch.tensor([[True, True, False, False], [False] * 4])
    loss = lambda *rest: loss_of_known(nll, masked, t, monkeypatch, *rest).item()
    assert loss() == pytest.approx(0.5 * 2 / 0.5 / 4 / 2)
    assert loss(["example"]) == pytest.approx(0.25) and loss(["flat"]) == pytest.approx(0.5)
    masked[:] = False
    assert loss() == loss(["example"]) == loss(["flat"]) == 0


def test_the_papers_weighting_is_unbiased(monkeypatch):
    """Averaged over t and masks, (1/t) * sum over masked / W is the plain mean over all tokens."""
    g = torch.Generator().manual_seed(1)
    nll, t = 0.1 + torch.rand(50_000, 6, generator=g), draw_t(50_000, "cpu", g)
    _, masked = forward_process(torch.zeros(50_000, 6, dtype=torch.long), t, MASK, g)
    loss = loss_of_known(nll, masked, t, monkeypatch)
    assert loss.item() == pytest.approx(nll.mean().item(), rel=0.03)


def test_forward_process_masks_each_token_with_probability_t():
    response = torch.randint(0, EOS, (4, 50_000), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.001, 0.2, 0.7, 1.0])
    before = response.clone()
    noisy, masked = forward_process(response, t, MASK, torch.Generator().manual_seed(1))
    assert torch.equal(response, before), "the targets stay"
    assert torch.equal(noisy == MASK, masked) and torch.equal(noisy[~masked], response[~masked])
    torch.testing.assert_close(masked.double().mean(1), t.double(), atol=0.01, rtol=0)
    assert masked[3].all()


def test_t_is_stratified_over_the_batch_and_above_eps(seed):
    t = draw_t(64, "cpu", torch.Generator().manual_seed(seed))
    assert (t > 1e-3).all() and (t <= 1).all()
    slices = ((1 - t) / (1 - 1e-3) * 64).floor().long().clamp(max=63)
    assert sorted(slices.tolist()) == list(range(64))
    inside = ((1 - t) / (1 - 1e-3) * 64) % 1
    assert inside.std() > 0.15, "each at a place of its own in its slice"


def test_prompt_and_image_are_never_masked():
    model, (images, prompt, response) = random_model(0), random_inputs(0, 4, 7)
    seen, forward = [], model.forward
    model.forward = lambda *inputs, causal: seen.append((*inputs, causal)) or forward(
        *inputs, causal=causal)
    diffusion_loss(model, images, prompt, response, torch.Generator().manual_seed(0))
    (pictures, ids, noisy, causal), = seen
    assert torch.equal(pictures, images) and torch.equal(ids, prompt)
    assert (noisy == MASK).any() and causal is False


def test_schedule():
    for steps in (500, 1000):
        factors = [schedule(s, steps) for s in range(steps)]
        top = max(range(steps), key=factors.__getitem__)
        assert factors[top] == 1 and top == 99, "the peak, at the end of the warm-up"
        assert factors[:top] == sorted(factors[:top])  # up, then down to nothing
        assert factors[top:] == sorted(factors[top:], reverse=True)
        falls = {round(a - b, 12) for a, b in zip(factors[top:], [*factors[top + 1:], 0])}
        assert len(falls) == 1, "in equal steps, to 0 one step after the last"
    for steps in (1, 2, 3, 4, 5, 7, 19, 400, 600):
        factors = [schedule(s, steps, 3) for s in range(steps)]
        assert max(factors) == 1 and min(factors) > 0, "whatever the length of the phase"
