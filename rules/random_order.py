"""Any k positions: what the original masked diffusion sampler does (`origin` in Dimple's public code)."""
import torch

from rules import scheduled, top


def rule(step, k=4):
    return top(step, torch.rand_like(step.confidence), scheduled(step, k))
