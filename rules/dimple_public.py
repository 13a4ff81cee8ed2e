"""The loop of Dimple's public code: a threshold, and a schedule for when nothing exceeds it.

yu-rp/Dimple, generation_utils.py, `_sample`, pipeline "dim". Commit what is above the threshold
(0: none is); if nothing is, a count from the schedule: random=1 any of the masks (`origin`, its
example's choice), random=0 the most confident (`maskgit_plus`). Iteration steps - 1 commits all.
flat=1 is the public code, which looks for what is above, and counts, in all masks of the batch: its
examples influence each other, and one may commit nothing. flat=0 does the same for each example.
Different here: [MASK] is never proposed.
"""
import math

import torch

from mini_dimple import EPS
from rules import top


def scheduled(left, at_the_start, steps, iteration):
    """How many of the masks that are left to commit, (B, 1) each.

    With s / t of them kept from time t to time s, n masks lose int(n * (1 - s / t)). t is the share
    of the masks at the start that is left; s the first of steps + 1 times from 1 to EPS that loses
    one or more, but not before time i + 1 in iteration i. The last time loses all."""
    times = torch.linspace(1, EPS, steps + 1, device=left.device)
    times[-1] = 0
    counts = (left * (1 - times[min(iteration + 1, steps):] / (left / at_the_start))).floor()
    return torch.where(counts >= 1, counts, left).amin(1, keepdim=True)  # they grow along a row


def rule(step, threshold=0.95, steps=48, random=0, flat=0):
    rows = (1, -1) if flat else step.masked.shape
    masked, score = step.masked.reshape(rows), step.confidence.reshape(rows)
    on = threshold and step.iteration < steps - 1
    above = masked & (score > (threshold if on else math.inf))
    if random:
        score = torch.rand(score.shape, generator=step.generator, device=score.device)
    left = masked.sum(1, keepdim=True)
    count = scheduled(left, step.memory.setdefault("at_the_start", left), steps, step.iteration)
    chosen = torch.where(above.any(1, keepdim=True), above, top(masked, score, count))
    return torch.where(chosen.view_as(step.masked), step.proposal, step.tokens)
