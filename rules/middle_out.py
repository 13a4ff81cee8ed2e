"""Exact if dependence is near, as in a Markov chain, or between copies: all that is sure, and of
each run of open places the surest in its middle.

Ours.
"""
import torch

from rules import runs


def rule(step, sure=0.9, alike=0.8, middle=0.5, back=0.1, budget=0, alone_=1):
    peak = step.probs.amax(-1)                                                   # (B, W)
    if budget:
        risk, order = (1 - peak).masked_fill(~step.masked, torch.inf).sort(1, stable=True)
        certain = torch.zeros_like(step.masked).scatter(1, order, risk.cumsum(1) <= budget)
    else:
        certain = step.masked & (peak > sure)
    left = step.masked & ~certain
    start, size = runs(left)
    place = torch.arange(left.shape[1], device=left.device)
    off = (2 * (place - start) + 1 - size).abs()         # from the middle, in half places
    central = left & (off <= (middle * size).clamp(min=1))
    rank = peak.masked_fill(~central, -1).argsort(1, stable=True).argsort(1)     # no two alike
    best = torch.zeros_like(rank).scatter_reduce(1, start, rank * central, "amax").gather(1, start)
    chosen = central & (rank == best)
    alone = chosen & (size <= alone_)
    surest = rank.masked_fill(~alone, -1).argmax(1, keepdim=True)
    other = step.probs.gather(1, surest[..., None].expand(-1, -1, step.probs.shape[-1]))
    overlap = torch.minimum(step.probs, other).sum(-1)
    chosen &= ~(alone & (overlap >= alike) & (place != surest))
    if not back:
        return certain | chosen
    own = step.probs.gather(-1, step.tokens[..., None])[..., 0]
    return step.commit(certain | chosen).masked_fill(~step.masked & (own < back), step.mask_id)
