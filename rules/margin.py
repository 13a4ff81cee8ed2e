"""The k positions where the most probable token is furthest ahead of the second.

`topk_margin` in Dimple's public code, which takes the count from its schedule.
"""
from rules import top


def rule(step, k=4):
    first, second = step.probs.topk(2, dim=-1).values.unbind(-1)  # (B, W) each
    return top(step.masked, first - second, k)
