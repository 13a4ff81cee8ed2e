"""Exercise 8, an answer."""
import torch


def rule(step, k=16):
    W = step.masked.shape[1]
    block = torch.arange(W, device=step.masked.device) // k
    current = torch.where(step.masked, block, W).amin(1, keepdim=True)  # (B, 1)
    confidence = step.confidence.masked_fill(~step.masked | (block != current), -1)
    return (confidence > 0.9).scatter(1, confidence.argmax(1, keepdim=True), True)


from exercises.checks.semi_autoregressive import *
