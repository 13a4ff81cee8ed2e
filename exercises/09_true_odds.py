"""Exercise 9: the word first or the place first, and which odds come out.

At temperature 1 a perfect model should write each caption as often as its odds say: of an object's
two wordings the first in 55%. Confident decoding draws a word for every [MASK]; where none exceeds
the threshold it commits the one whose *drawn* word is the most probable. So the draw decides which
place is next. But many places carry one choice: all words in which the two wordings differ.

Before you run it: n places carry one choice of 0.55 to 0.45. How often does 0.55 come out if n is
1, 2, 10? And how do you choose a place so that the odds come out as they are?

Paper: confident decoding, section 3.4. To choose first and then draw is not part of Dimple
(arXiv 2510.04525, on MaskGIT).
Compare afterwards: rules/peak.py.
Check: python -m exercises 9
Board: python -m lab rules --rule exercises/mine/09_true_odds.py
"""
import torch


def likelier_wins(p, n, temperature=1.0):
    """(a) n masked places carry one choice: all hold its first word, with probability p, or all its
    second, with 1 - p; 0.5 < p < 0.9. In a pass each place draws its own word, at this temperature
    (above 0). The place whose drawn word has the highest probability, before temperature, is
    committed, and the others follow -> a number: how often the first word comes out."""
    raise NotImplementedError


def rule(step, threshold=0.9):
    """(b) step: a `mini_dimple.Step` -> positions to commit, bool (B, W). Confident decoding, but
    what a position has drawn (step.proposal) must not decide whether it is committed. Where you
    name no masked position of an example, the loop goes by the drawn words, so do name one.

    step.masked (B, W); step.probs (B, W, vocab), before temperature."""
    raise NotImplementedError
