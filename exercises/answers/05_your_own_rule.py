"""Exercise 5, an answer: what is sure, and one open choice with it."""
import torch


def rule(step):
    sure = step.confidence > 0.9
    open_choices = step.confidence.masked_fill(~step.masked | sure, -1)  # (B, W)
    return sure.scatter(1, open_choices.argmax(1, keepdim=True), True)


from exercises.checks.your_own_rule import *
