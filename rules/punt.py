"""Exact if a place that several tokens together do not move is not moved by any one of them: a set
of proposals that do not influence each other, found by further looks.

PUNT (arXiv 2510.21961), section 3. Sort the M masks by confidence and number them in binary. For
each of the ceil(log2 M) digits, look at the window with the proposals of those that have a 0 there.
Of those that have a 1, drop each whose distribution moves by more than `bound` (the KL divergence
of the old from the new, in nats). Of any two that are left, one was tested with the other in view.
Contradicting proposals may cancel out; then the assumption fails. Different here: confidence is the
distribution's peak (see peak.py). A batch looks as often as its example with the most masks; what
an example counts are the looks that it needs alone.
"""
import torch
from torch.special import xlogy


def rule(step, bound=0.02):
    peak = step.probs.amax(-1).masked_fill(~step.masked, -torch.inf)
    rank = peak.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # (B, W)
    digits = step.masked.sum(1).clamp(min=1).log2().ceil().long()            # (B,)
    kept = step.masked
    for digit in reversed(range(digits.max())):
        tested = (rank >> digit) % 2 == 1
        now = step.look(torch.where(kept & ~tested, step.proposal, step.tokens)).softmax(-1)
        moved = (xlogy(step.probs, step.probs) - xlogy(step.probs, now)).sum(-1)  # (B, W) nats
        kept = kept & ~(tested & (moved > bound))
    step.passes = 1 + digits
    return kept
