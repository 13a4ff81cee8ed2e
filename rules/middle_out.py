"""Exact if dependence is near, as in a Markov chain, or between copies: all that is sure, and of
each run of unsure places the surest in its middle.

Ours. A run ends at a place that is committed or sure. If dependence is near, runs say nothing of
each other, and one place of each may go: in the middle `middle` of it, as its halves are then runs
of their own (halving.py). Places that stand alone and have like distributions (cosine similarity
`alike`) may be copies of one choice: the surest of them goes. Sure is meant of the distribution,
not of the token drawn from it (peak.py). A token that has become improbable, below `back`, is taken
back (remask.py), but not in the second half of the iterations, so that it ends.

With middle=1, alike=2 and back=0 it is near to dInfer's hierarchical decoding (arXiv 2510.08666):
the surest place of each run. There a run ends only at a committed place, the drawn token counts, and
a second, lower threshold.
"""
import torch
import torch.nn.functional as F

from rules import runs


def rule(step, sure=0.9, alike=0.8, middle=0.5, back=0.1):
    peak = step.probs.amax(-1)                                              # (B, W)
    certain = step.masked & (peak > sure)
    unsure = step.masked & ~certain
    start, size = runs(unsure)
    place = torch.arange(unsure.shape[1], device=unsure.device)
    off = (2 * (place - start) + 1 - size).abs()                            # in half places
    central = unsure & (off <= (middle * size).clamp(min=1))
    rank = peak.argsort(dim=1, stable=True).argsort(dim=1) * central        # the surest: highest
    surest = torch.zeros_like(rank).scatter_reduce(1, start, rank, "amax").gather(1, start)
    chosen = central & (rank == surest)
    alone = chosen & (size == 1)
    direction = F.normalize(step.probs, dim=-1)
    copies = direction @ direction.mT >= alike                              # (B, W, W)
    surer = alone[:, None] & (rank[:, None] > rank[:, :, None])
    chosen &= ~(alone & (copies & surer).any(2))
    own = step.probs.gather(-1, step.tokens[..., None])[..., 0]
    doubtful = ~step.masked & (own < back) & (step.iteration < step.limit // 2)
    return step.commit(certain | chosen).masked_fill(doubtful, step.mask_id)
