"""The k positions where the most probable token is furthest ahead of the second."""
from rules import scheduled, top


def rule(step, k=4):
    first, second = step.probs.topk(2, dim=-1).values.unbind(-1)  # (B, W) each
    return top(step, first - second, scheduled(step, k))
