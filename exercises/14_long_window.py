"""Exercise 14: EOS takes over a long window, and what random padding does.

A response is shorter than its window; EOS fills the rest, and is learnt like any other token.
Dimple pads by a random length, so that the model meets windows of many lengths: here one length for
the whole batch, drawn anew for each. Write that padding, and which share of a batch is EOS.

The shipped weights have met no window above 48 tokens, and no answer needs more than 39. Given one
of 144 they have nothing right. Mend it without training: a rule that decodes such a window after
all. Before you write it: would it help to fill the window from 48 on with EOS?

The checker then trains the shipped weights on, a few steps, padded by your function up to 144.

Paper: training, random padding (S1.2). Part (c) is not part of Dimple.
Compare afterwards: `Batches` in data/__init__.py; "Length bias" in docs/results.md.
Check: python -m exercises 14
"""
import torch


def pad(responses, longest, eos_id, generator):
    """(a) responses: B lists of ids, without EOS -> LongTensor (B, W), each response followed by at
    least one EOS and filled with EOS. W is drawn once for the batch, with the generator: uniform
    over the whole numbers from the shortest possible window up to `longest`, included."""
    raise NotImplementedError


def eos_share(lengths, W):
    """(b) lengths (B,): tokens of each response, without EOS -> float, the share of EOS among the
    B * W tokens of the batch."""
    raise NotImplementedError


def rule(step, longest=48):
    """(c) step: a `mini_dimple.Step` -> positions to commit, bool (B, W), or the next window, ids
    (B, W'), which may be shorter: it is cut at its end. As confident decoding at 0.9, in windows of
    any length, of a model that knows windows up to `longest`. step.confidence and step.proposal
    (B, W) come of a pass that has seen all of step.tokens (B, W)."""
    raise NotImplementedError
