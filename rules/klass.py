"""KLASS: commit what is sure and has stopped moving.

KL-adaptive stability sampling (arXiv 2511.05664), by its public code (shkim0116/KLASS,
src/model/llada_klass.py and the numbers in scripts/): commit the positions with a confidence above
the threshold whose distribution's KL divergence from the one before has been below the bound in
each of the last `history` iterations; if there is none, as always in the first `history`, the most
confident. Here: over the whole window; the authors decode LLaDA block by block.
"""
import torch
from torch.special import xlogy


def rule(step, threshold=0.9, bound=0.01, history=2):
    now, before = step.probs, step.memory.get("probs", torch.zeros_like(step.probs))
    kl = (xlogy(now, now) - xlogy(now, before)).sum(-1)  # (B, W) nats, infinite at first
    stable = (kl < bound) * (step.memory.get("stable", 0) + 1)  # (B, W) iterations in a row
    step.memory.update(probs=now, stable=stable)
    return (step.confidence > threshold) & (stable >= history)
