"""Exact if dependence is near, as in a Markov chain, or between copies: all that is sure, and the
middle of each run of unsure places.

Ours. A run ends at a place that is committed or sure. Where dependence is near, runs say nothing of
each other, so that one place of each may go, the middle (of two, the surer), as the halves are then
runs of their own (halving.py). Places that stand alone and have like distributions (cosine
similarity `alike`) may be copies of one choice: of these one. Sure is meant of the distribution,
not of the token drawn from it (peak.py). A token that has become improbable, below `back`, is taken
back (remask.py), but not in the second half of the iterations, so that it ends.
"""
import torch
import torch.nn.functional as F

from rules import runs


def rule(step, sure=0.9, alike=0.8, back=0.1):
    peak = step.probs.amax(-1)                                              # (B, W)
    certain = step.masked & (peak > sure)
    unsure = step.masked & ~certain
    start, size = runs(unsure)
    left, right = start + (size - 1) // 2, start + size // 2
    middle = torch.where(peak.gather(1, right) > peak.gather(1, left), right, left)
    chosen = unsure & (torch.arange(unsure.shape[1], device=middle.device) == middle)
    alone = chosen & (size == 1)
    direction = F.normalize(step.probs, dim=-1)
    copies = (direction @ direction.mT >= alike) & alone[:, :, None] & alone[:, None]  # (B, W, W)
    chosen &= ~copies.tril(-1).any(2)  # of copies the leftmost
    own = step.probs.gather(-1, step.tokens[..., None])[..., 0]
    doubtful = ~step.masked & (own < back) & (step.iteration < step.limit // 2)
    return step.commit(certain | chosen).masked_fill(doubtful, step.mask_id)
