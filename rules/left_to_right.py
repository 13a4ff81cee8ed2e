"""The k leftmost positions; one in Dimple's public code."""
import torch

from rules import scheduled, top


def rule(step, k=1):
    position = torch.arange(step.masked.shape[1], device=step.masked.device)
    return top(step, -position.float().expand(step.masked.shape), scheduled(step, k))
