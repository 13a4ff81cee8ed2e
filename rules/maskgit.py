"""MaskGIT: the k most confident positions."""
from rules import scheduled, top


def rule(step, k=4):
    return top(step, step.confidence, scheduled(step, k))
