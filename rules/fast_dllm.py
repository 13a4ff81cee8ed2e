"""Fast-dLLM's factor rule: the surer the least sure of them is, the more positions at once.

Fast-dLLM (arXiv 2505.22618), section 3.3 and Algorithm 1, lines 10 to 12: with the confidences
sorted, c1 >= c2 >= ..., commit the largest n with (n + 1) (1 - cn) < factor, and at least one. With
a factor of 1, these n tokens are also the most probable ones together (Theorem 1). Here: over the
whole window, not block by block, and without a cache.
"""
import torch


def rule(step, factor=1.0):
    confidence = step.confidence.masked_fill(~step.masked, -torch.inf)
    confidence, order = confidence.sort(dim=1, descending=True, stable=True)  # (B, W) each
    n = torch.arange(1, order.shape[1] + 1, device=order.device)
    fits = (n + 1) * (1 - confidence) < factor  # it grows along a row: true at the first n
    return torch.zeros_like(step.masked).scatter(1, order, fits)
