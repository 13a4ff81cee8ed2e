"""Variants of phase 2 that are not the paper's: `train.py --variant`, measured by `python -m lab
claims`."""
import torch

from mini_dimple import EPS, Dimple, draw_t, forward_process, token_nll

VARIANTS = {
    "flat": "the loss is the mean over all masked tokens of the batch, without 1/t",
    "example": "the mean over each example's masked tokens, then over examples (the public code)",
    "complementary": "each example twice, with a mask and its complement; half as many examples",
    "unpadded": "no more EOS than the batch's longest response needs",
    "prefix-mask": "what precedes the last prompt token cannot see the response (LaViDa)",
}


class PrefixMasked(Dimple):
    """LaViDa's prefix mask: in phase 2, what precedes the last prompt token sees itself alone. Its
    keys and values then never go stale: prefilling is exact. (The last prompt token scores the
    first of the window, and sees all.)"""

    def logits(self, prefix, response, causal, past=None):
        """As `Dimple.logits`."""
        if not causal and past is None:
            _, past = self.transformer(prefix[:, :-1], causal)
            prefix = prefix[:, -1:]
        return super().logits(prefix, response, causal, past)


@torch.no_grad()
def unseen(model, images, prompt):
    """A look: prefilling with a prefix that never saw the window, in the first pass either. Shapes
    and errors as `mini_dimple.prefilled`."""
    prefix = model.prefix(images, prompt)
    _, past = model.transformer(prefix[:, :-1], causal=False)
    return lambda tokens, state=None: (model.logits(prefix[:, -1:], tokens, False, past)[0], None)


def variant_loss(model, images, prompt, response, generator=None, variants=()):
    """`mini_dimple.diffusion_loss` as VARIANTS change it: "flat", "example", "complementary".

    "complementary" takes the first half of the batch, so that a step costs what it did; every
    response token is then supervised once ("dual" in Dimple's public code)."""
    mask_id, half = model.config.mask_id, (len(response) + 1) // 2
    if "complementary" in variants:
        images, prompt, response = images[:half], prompt[:half], response[:half]
    t = draw_t(len(response), response.device, generator)
    noisy, masked = forward_process(response, t, mask_id, generator)
    if "complementary" in variants:
        noisy = torch.cat([noisy, response.masked_fill(~masked, mask_id)])
        masked, t = torch.cat([masked, ~masked]), torch.cat([t, (1 - t).clamp(min=EPS)])
        images, prompt, response = (torch.cat([x, x]) for x in (images, prompt, response))
    nll = token_nll(model(images, prompt, noisy, causal=False), response) * masked  # (B, W)
    if "flat" in variants:
        return nll.sum() / masked.sum().clamp(min=1)
    if "example" in variants:
        return (nll.sum(1) / masked.sum(1).clamp(min=1)).mean()
    return (nll.sum(1) / t).mean() / response.shape[1]
