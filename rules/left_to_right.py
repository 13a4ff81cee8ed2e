"""The k leftmost positions; one, `autoregressive`, in Dimple's public code."""
import torch

from rules import top


def rule(step, k=1):
    position = torch.arange(step.masked.shape[1], device=step.masked.device)
    return top(step.masked, -position.float().expand(step.masked.shape), k)
