"""Exercise 9: the word first, or the place first, and which odds come out.

At temperature 1 a perfect model should write each caption as often as its odds say: of an object's
two wordings the first in 55%, the second in 45%. Confident decoding draws a word for every [MASK],
and where none exceeds the threshold it commits the one whose drawn word is the most probable. So
the draw decides which place is next. But many places carry one choice: a phrase's words differ in
its two wordings, and each place draws its own.

Before you run it: n places carry one choice of 0.55 to 0.45. How often does 0.55 come out if n is
1, 2, 10? And how do you choose a place so that the odds come out as they are?

Paper: confident decoding, section 3.4. That a sampler should choose, then draw, is not part of
Dimple (arXiv 2510.04525, on MaskGIT).
Compare afterwards: rules/peak.py.
Check: python -m exercises 9
Board: python -m lab rules --rule exercises/mine/09_true_odds.py
"""
import torch


def likelier_wins(p, n, temperature=1.0):
    """(a) n masked places carry one choice: all hold its first word, with probability p, or all its
    second, with 1 - p; 0.5 < p < 0.9. In a pass each place draws its own word at this temperature
    (above 0). The place whose drawn word has the highest probability, before temperature, is
    committed, and the others follow -> a number: how often the first word comes out."""
    raise NotImplementedError


def rule(step, threshold=0.9):
    """(b) step: a `mini_dimple.Step` -> positions to commit, bool (B, W). Without a temperature it
    is confident decoding. With one, what a position has drawn must not decide whether it is
    committed.

    step.masked (B, W); step.probs (B, W, vocab), of each position the probability of each word,
    before temperature; step.proposal (B, W), what was drawn. Where you name no masked position, the
    loop takes the most probable of the drawn words, and you do not want that."""
    raise NotImplementedError
