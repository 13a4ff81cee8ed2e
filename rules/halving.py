"""Exact for a first-order Markov chain, in log2 W passes: the middle of each run of masks.

The bisection sampler of random walks (arXiv 2606.22976, by its abstract): given what separates
them, two runs of a chain say nothing of each other, so that one place of each may go. With `base`,
DUS (arXiv 2506.19037, equations 8 and 9, base 2; there block by block): in iteration t = 1, 2, ...
the positions that are multiples of W / base^t, rounded down. These are the middles if W is 2^n.
"""
import torch

from rules import runs


def rule(step, base=0):
    W = step.masked.shape[1]
    place = torch.arange(W, device=step.masked.device).expand(step.masked.shape)
    if base:
        return place % max(1, W // base ** (step.iteration + 1)) == 0
    start, size = runs(step.masked)
    return step.masked & (place == start + size // 2)
