"""Exercise 13: how much depends on one another, and what a bound on the entropy knows of it.

Words committed in one pass are drawn independently. What is lost by that is the KL divergence of
their joint distribution from the product of their marginals: the sum of the entropies of the
single words, less the entropy of all of them together.

A model gives marginals only. But all words together have at least the entropy of the most
undecided one of them; so the loss is at most the sum of the entropies, less the largest.
EB-Sampler (rules/eb_sampler.py) commits as many positions as keep this bound below a number.

Before you run it: on the board (docs/results.md) eb_sampler:0.5 is always right on the exact
posterior, sampled, and eb_sampler:0.8 in one caption of eight. Between them something breaks, in a
perfect model. At which number, and what does it have to do with two wordings?

Not part of Dimple: EB-Sampler (arXiv 2505.24857), section 4.
Compare afterwards: rules/eb_sampler.py.
Check: python -m exercises 13
Board: python -m lab rules --rule eb_sampler:NUMBER
"""
import torch


def joint_error(captions, odds, tokens, mask_id, places):
    """captions (N, W) ids, all right ones of a scene, no two alike; odds (N,), their sum is 1;
    tokens (W,) ids, a window: at [MASK] positions mask_id, elsewhere what is committed; places:
    a list of masked positions -> a number, in nats (natural logarithms): the KL divergence of the
    joint distribution at these places, given what is committed, from the product of its marginals.

    Captions that are alike at the places are one outcome of the joint distribution: hint,
    torch.unique(..., dim=0, return_inverse=True) numbers the outcomes. torch.special.entr(p) is
    -p ln p, and 0 at p = 0."""
    raise NotImplementedError


def bound(captions, odds, tokens, mask_id, places):
    """-> a number, in nats: the sum of the entropies of the single words at `places`, given what
    is committed, less the largest of them."""
    raise NotImplementedError


def breaks_at(p):
    """Two masked words are tied, either one says which the other is, with two choices of
    probability p and 1 - p (0 < p < 1) -> the bound from which on EB-Sampler commits both at once,
    in nats."""
    raise NotImplementedError
