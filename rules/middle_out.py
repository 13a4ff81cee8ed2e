"""Exact if dependence is near, as in a Markov chain, or between copies: all that is sure, and of
each run of open places the surest in its middle.

Ours.
"""
import torch
import torch.nn.functional as F

from rules import runs


def rule(step, sure=0.9, alike=0.8, middle=0.5, back=0.1, budget=0, alone_=1):
    peak = step.probs.amax(-1)                                                   # (B, W)
    if budget:
        risk, order = (1 - peak).masked_fill(~step.masked, torch.inf).sort(dim=1, stable=True)
        certain = torch.zeros_like(step.masked).scatter(1, order, risk.cumsum(1) <= budget)
    else:
        certain = step.masked & (peak > sure)
    open_ = step.masked & ~certain
    start, size = runs(open_)
    place = torch.arange(open_.shape[1], device=open_.device)
    off = (2 * (place - start) + 1 - size).abs()         # from the middle, in half places
    central = open_ & (off <= (middle * size).clamp(min=1))
    rank = peak.masked_fill(~central, -1).argsort(dim=1, stable=True).argsort(dim=1)  # all differ
    best = torch.zeros_like(rank).scatter_reduce(1, start, rank * central, "amax").gather(1, start)
    chosen = central & (rank == best)
    alone = chosen & (size <= alone_)
    unit = F.normalize(step.probs, dim=-1)
    surer = alone[:, None] & (rank[:, None] > rank[:, :, None])                  # (B, W, W)
    chosen &= ~(alone & (surer & (unit @ unit.mT >= alike)).any(2))
    if not back:
        return certain | chosen
    own = step.probs.gather(-1, step.tokens[..., None])[..., 0]
    return step.commit(certain | chosen).masked_fill(~step.masked & (own < back), step.mask_id)
