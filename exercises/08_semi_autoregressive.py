"""Exercise 8: semi-autoregressive decoding, block by block.

LLaDA cuts the window into blocks of k tokens and finishes one before it begins the next: left to
right between blocks, any order within one. With k = 1 that is autoregressive order; with k as long
as the window it is plain diffusion. Within a block, commit as confident decoding does: all above
0.9, else the most confident. As a rule, it needs no change of the decoding loop.

A trap: where a rule names no position of an example, the loop commits that example's most confident
one, of the WHOLE window.

Not part of Dimple: LLaDA (arXiv 2502.09992); Block Diffusion (arXiv 2503.09573) trains for it.
Compare afterwards: rules/blocks.py.
Check:       python -m pytest exercises/08_semi_autoregressive.py
Board: python -m lab rules --rule exercises/08_semi_autoregressive.py:16
"""
import torch


def rule(step, k=16):
    """step: a `mini_dimple.Step` -> positions to commit, bool (B, W). Block i: positions i * k to
    i * k + k - 1.

    The current block of an example is the first one that has a [MASK] in it, whatever the other
    examples do; tokens may be given anywhere. An example without a [MASK] is finished, and stays in
    the batch; what you name of it is ignored. Hint: torch.arange(W) // k numbers the blocks;
    torch.where and amin(1) find the first."""
    raise NotImplementedError


from exercises.checks.semi_autoregressive import *  # the checker; keep this line last
