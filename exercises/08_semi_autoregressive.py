"""Exercise 8: semi-autoregressive decoding, the surest block first.

LLaDA cuts the window into blocks of k tokens and finishes one before it begins the next, from left
to right: rules/blocks.py. But must they come from left to right? Here the next block is the one of
which the model is surest: with the highest mean confidence over its masked positions, among the
blocks that have a [MASK]. It is then finished, too, before another begins. Within a block, commit
as confident decoding does: all masked positions above 0.9, else the most confident one.

Before you run it: which block will come first, and what does the model know by then?

A trap: where a rule names no position of an example, the loop commits that example's most confident
one, of the WHOLE window.

Not part of Dimple: LLaDA (arXiv 2502.09992); Block Diffusion (arXiv 2503.09573) trains for blocks.
Compare afterwards: rules/blocks.py.
Check: python -m exercises 8
Board: python -m lab rules --rule exercises/08_semi_autoregressive.py:16
"""
import torch


def rule(step, k=16):
    """step: a `mini_dimple.Step` -> positions to commit, bool (B, W). Block i: positions i * k to
    i * k + k - 1, the last one possibly shorter.

    Each example is in a block of its own. Which one it has begun is yours to remember:
    step.memory is a dict that is empty at the start of a decoding and lasts as long as it does.
    A given token does not begin a block. An example without a [MASK] is finished, and stays in the
    batch. Hint: torch.arange(W) // k numbers the blocks; sums of a block's positions are a matrix
    product with F.one_hot, or a scatter_add."""
    raise NotImplementedError
