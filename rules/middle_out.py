"""Exact if dependence is near, as in a Markov chain, or between copies: all that is sure, and of
each run of unsure places the surest in its middle.

Ours. A run ends at a place that is committed or sure. Where dependence is near, runs say nothing of
each other, so that one place of each may go, from the middle `middle` of it, as its parts are then
runs of their own (halving.py). Places that stand alone and have like distributions (cosine
similarity `alike`) may be copies of one choice: of these the surest. Sure is meant of the
distribution, not of the token drawn from it (peak.py). A token that has become improbable, below
`back`, is taken back (remask.py), but not in the second half of the iterations, so that it ends.

middle=1, alike=2, back=0 is near to dInfer's hierarchical decoding (arXiv 2510.08666; inclusionAI/
dInfer, parallel_strategy.py): the surest place of each run. There runs end at committed places
alone, the drawn token counts, and places below a second threshold wait.
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
