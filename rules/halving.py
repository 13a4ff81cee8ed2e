"""Exact for a first-order Markov chain, in log2 W passes: the middle of each run of masks.

The bisection sampler of random walks (arXiv 2606.22976; read in its abstract only): given what
separates them, two runs of a chain say nothing of each other, so that one place of each may go;
from its middle, as the halves are then runs of their own. With `base`, the fixed grid of DUS (arXiv
2506.19037, equations 8 and 9; there 2, and block by block): in iteration t = 1, 2, ... each
position that is a multiple of W / base^t, rounded down. If W is a power of 2, these are middles,
too.
"""
import torch

from rules import runs


def rule(step, base=0):
    W = step.masked.shape[1]
    place = torch.arange(W, device=step.masked.device)
    if base:
        return (place % max(1, W // base ** (step.iteration + 1)) == 0).expand(step.masked.shape)
    start, size = runs(step.masked)
    return step.masked & (place == start + size // 2)
