"""Any k positions.

The order of masked diffusion's ancestral sampler, but not its count: there each mask is committed
with the same probability, so that their number varies. `origin` in Dimple's public code takes the
count from a schedule: dimple_public.py, random=1.
"""
import torch

from rules import top


def rule(step, k=4):
    shape, device = step.masked.shape, step.masked.device
    return top(step.masked, torch.rand(shape, generator=step.generator, device=device), k)
