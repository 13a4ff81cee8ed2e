"""Exact one place at a time: confident decoding by the peak of a distribution, not by the token
that was drawn from it.

The order of committing must not depend on what was drawn (choose, then sample: arXiv 2510.04525,
of MaskGIT's sampler). Section 3.4 of the paper goes by the drawn token's probability: where several
places carry one choice, the place that drew the likelier value decides it, and at temperature 1 the
odds sharpen. Here a place goes by its likeliest token's probability. Without a temperature it is
confident decoding. What exceeds the threshold is still committed together.
"""
from rules import top


def rule(step, threshold=0.9):
    peak = step.probs.amax(-1)  # (B, W)
    return (peak > threshold) | top(step.masked, peak, 1)
