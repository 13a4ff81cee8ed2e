"""Exercise 9, an answer."""
import torch


def likelier_wins(p, n, temperature=1.0):
    a, b = p ** (1 / temperature), (1 - p) ** (1 / temperature)
    draws_the_second = b / (a + b)
    return 1 - draws_the_second ** n  # one place that draws the first word is enough


def rule(step, threshold=0.9):
    peak = step.probs.amax(-1).masked_fill(~step.masked, -1)  # (B, W)
    best = peak.argmax(1, keepdim=True)
    return (peak > threshold) | torch.zeros_like(step.masked).scatter(1, best, True)
