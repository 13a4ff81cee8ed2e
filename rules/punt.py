"""Exact if whoever is not moved by several tokens together is not moved by any of them: what of
the proposals does not influence each other, found by further looks.

PUNT (arXiv 2510.21961), section 3 and Algorithm 1. Number the M masks by confidence, in binary. For
each of the ceil(log2 M) digits, look at the window with the proposals of those that have a 0 there
("anchors"). Of those that have a 1, drop each whose distribution moves by more than `bound`, the KL
divergence of the new from the old in nats. Any two that are left were tested against each other.
Different here: confidence is the peak of the distribution (see peak.py); the examples of a batch
look as often as the one with most masks, and may then test nothing.
"""
import torch
from torch.special import xlogy


def rule(step, bound=0.02):
    peak = step.probs.amax(-1).masked_fill(~step.masked, -torch.inf)
    rank = peak.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # (B, W)
    kept = step.masked.clone()
    for digit in reversed(range((int(step.masked.sum(1).max()) - 1).bit_length())):
        tested = (rank >> digit & 1).bool()
        now = step.look(torch.where(kept & ~tested, step.proposal, step.tokens)).softmax(-1)
        moved = (xlogy(step.probs, step.probs) - xlogy(step.probs, now)).sum(-1)  # (B, W) nats
        kept &= ~(tested & (moved > bound))
    return kept
