"""Checks exercise 13: numbers from the list of captions, then EB-Sampler on the exact posterior."""
import math
import random

import torch

from data import toy
from exercises.checks import MASK, compare, mean, measured, number
from exercises.checks.exact_posterior import cases, masked_places, told, words

ODDS = toy.WORDINGS["two"][0]
BESIDE = 0.002  # nats: how far below and above the reader's number


def entropy(some, places, weight):
    """Of the captions' joint distribution at `places`, in nats."""
    _, outcome = some.captions[:, places].unique(dim=0, return_inverse=True)
    weight = (weight / weight.sum()).double()
    probs = torch.zeros_like(weight).index_add(0, outcome, weight)
    return torch.special.entr(probs).sum().item()


def error_and_bound(some, places, weight):
    single = [entropy(some, [place], weight) for place in places]
    return sum(single) - entropy(some, places, weight), sum(single) - max(single)


def mistaken(some, tokens, places):
    """Lesson -> what is easily taken for the error, and for the bound (nan: nothing)."""
    agrees = some.agree(tokens)
    weight = some.odds * agrees
    error, bound = error_and_bound(some, places, weight)
    single = [entropy(some, [place], weight) for place in places]
    captions = torch.special.entr(weight / weight.sum()).sum().item()
    return {
        "That is in bits: take the natural logarithm.": (error / math.log(2), bound / math.log(2)),
        "Leave out the captions that disagree with what is committed.":
            error_and_bound(some, places, some.odds),
        "All captions that agree count the same in yours; use their odds.":
            error_and_bound(some, places, agrees.float()),
        "Captions that are alike at the places are one outcome: add up their odds first.":
            (sum(single) - captions, math.nan),
        "You subtract the smallest entropy, not the largest.":
            (math.nan, sum(single) - min(single)),
        "That has to be subtracted from the sum of the single entropies.":
            (entropy(some, places, weight), max(single))}


def joint_error_and_bound(solution):
    rng = random.Random(0)
    asked = [(some, tokens, sorted(rng.sample(masked_places(tokens), n)))
             for some, tokens in cases() for n in (2, 2, 2, 2, 3, 3, 3, 6, 1)
             if n <= len(masked_places(tokens))]
    right = [error_and_bound(some, places, some.odds * some.agree(tokens))
             for some, tokens, places in asked]
    wrong = [mistaken(*one) for one in asked]
    for k, name in enumerate(("joint_error", "bound")):
        mine = [number(some.ask(getattr(solution, name), tokens, places), name)
                for some, tokens, places in asked]
        off = max(range(len(asked)), key=lambda n: not abs(mine[n] - right[n][k]) < 1e-3)
        # a lesson must explain all that is wrong
        compare(mine, [one[k] for one in right],
                {lesson: [one[lesson][k] for one in wrong] for lesson in wrong[0]},
                f"With the window \"{words(asked[off][1])}\" and the places {asked[off][2]} {name} "
                f"is {right[off][k]:.3f} nats; yours: {mine[off]:.3f}. ")


def where_it_breaks(solution):
    for p in (0.5, ODDS, 0.9, 0.2):
        value = number(solution.breaks_at(p), "breaks_at")
        right = -p * math.log(p) - (1 - p) * math.log(1 - p)
        compare(value, right, {
            "That is in bits: take the natural logarithm.": right / math.log(2),
            "That is ln 2, for even odds; unequal ones leave less open.": math.log(2),
            "That is the sum of both entropies. EB-Sampler leaves the largest one of them out: one "
            "word alone always fits.": 2 * right},
            f"breaks_at({p}) is {right:.4f} nats; yours: {value:.4f}. ", 1e-4)


CHECKS = [joint_error_and_bound, where_it_breaks]


def show(solution):
    """The reader's numbers for some words of a first pass; EB-Sampler on either side of the number
    at which it breaks."""
    some, at = told(), number(solution.breaks_at(ODDS), "breaks_at")
    tokens = torch.full_like(some.captions[0], MASK)
    yield f"The first pass of \"{words(some.captions[some.odds.argmax()])}\", in nats:"
    yield f"{'places':35s}{'joint error':>12s}{'bound':>12s}"
    for places, name in (([4, 5], "tied: of one wording"), ([0, 1, 2], "tied: the opening"),
                         ([3, 4], "the first word says more"), ([0, 4], "independent"),
                         ([0, 4, 5], "two of them tied")):
        found = [float(some.ask(function, tokens, places))
                 for function in (solution.joint_error, solution.bound)]
        yield "{:9s}{:26s}{:12.3f}{:12.3f}".format(", ".join(map(str, places)), name, *found)
    yield f"Your breaks_at({ODDS}) = {at:.4f}. On the exact posterior, sampled, 60 scenes:"
    for limit in (at - BESIDE, at + BESIDE, math.log(2) + BESIDE):
        found = measured(f"eb_sampler:{limit:.4f}", 60, "exact", 1.0)
        counts = [f", {word} {found.wrong.count(word)}" for word in toy.MISTAKES
                  if word in found.wrong]
        yield (f"eb_sampler:{limit:.4f}  {mean(found.right):7.1%} right in "
               f"{mean(found.passes):.2f} passes{''.join(counts)}")
    yield "Which words does the last one commit together that the second did not?"
