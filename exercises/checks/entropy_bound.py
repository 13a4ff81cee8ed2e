"""Checks exercise 13: numbers from the list of captions, then EB-Sampler on the exact posterior."""
import itertools
import math
import random

import torch

from data import toy
from exercises.checks import exercise, scenes, shipped, teach
from exercises.checks.exact_posterior import cases, number, told, words
from lab.evaluate import exact_way, graded
from rules import resolve

__all__ = ["test_exercise"]
ODDS = toy.WORDINGS["two"][0]
BESIDE = 0.002  # nats: how far below and above the student's number


def entropy(some, tokens, places, weight=None):
    """Of the captions' joint distribution at `places`, in nats."""
    weight = some.odds * some.agree(tokens) if weight is None else weight
    _, outcome = some.captions[:, places].unique(dim=0, return_inverse=True)
    probs = torch.zeros(len(weight), dtype=torch.double).index_add(
        0, outcome, (weight / weight.sum()).double())
    return torch.special.entr(probs).sum().item()


def total(some, tokens, places, weight=None):
    """-> joint error, bound; the entropies of the single words."""
    single = [entropy(some, tokens, [place], weight) for place in places]
    return (sum(single) - entropy(some, tokens, places, weight), sum(single) - max(single), single)


def taken_for(some, tokens, places):
    """-> [((what is easily taken for the error, what for the bound; or None), lesson), ...]"""
    error, most, single = total(some, tokens, places)
    agrees, odds = some.agree(tokens), some.odds
    of_captions = torch.special.entr(odds * agrees / (odds * agrees).sum()).sum().item()
    in_pairs = sum(total(some, tokens, list(pair))[0]
                   for pair in itertools.combinations(places, 2))
    return [
        ((error / math.log(2), most / math.log(2)), "That is in bits: take the natural logarithm."),
        (total(some, tokens, places, odds)[:2], "That is of all captions, as if nothing were "
         "committed: leave out those that disagree."),
        (total(some, tokens, places, agrees.float())[:2], "All captions that agree count the same "
         "in yours; use their odds."),
        ((most, error), "That is the other of the two: joint_error has the entropy of all words "
         "together, bound has the largest entropy of a single one."),
        ((sum(single) - of_captions, None), "You subtract the entropy of whole captions. Captions "
         "that are alike at the places are one outcome: add up their odds first."),
        ((in_pairs, None), "You add up what each pair shares. Three words that are tied share less "
         "than three pairs do: the third tells nothing new. Take them all together."),
        ((-error, -most), "The sign is the wrong way round."),
        ((sum(single), sum(single)), "That is the sum of the entropies; nothing is subtracted."),
        ((None, sum(single) - min(single)), "You subtract the smallest entropy, not the largest."),
        ((None, max(single)), "That is the largest entropy itself: subtract it from the sum."),
        ((entropy(some, tokens, places), None), "That is the entropy of all words together: "
         "subtract it from the sum of the single ones.")]


def places_of(tokens, rng):
    """Some lists of masked positions."""
    masked = (tokens == shipped()[0].config.mask_id).nonzero()[:, 0].tolist()
    for n in (2, 2, 2, 2, 3, 3, 3, 6, 1):
        if n <= len(masked):
            yield sorted(rng.sample(masked, n))


def check_numbers(solution):
    asked = [(some, tokens, places) for some, tokens in cases()
             for places in places_of(tokens, random.Random(0))]
    for k, name in enumerate(("joint_error", "bound")):
        values = [number(some.ask(getattr(solution, name), tokens, places), name)
                  for some, tokens, places in asked]
        right = [total(*one)[k] for one in asked]
        off = [n for n in range(len(asked)) if not abs(values[n] - right[n]) < 1e-3]
        if not off:
            continue
        _, tokens, places = asked[off[0]]
        where = (f"With the window \"{words(tokens)}\" and the places {places} {name} is "
                 f"{right[off[0]]:.3f} nats; yours: {values[off[0]]:.3f}. ")
        teach(not math.isnan(values[off[0]]), where + "0 * log(0) is no number, and 0 / 0 is none: "
              "entr(p) takes 0 ln 0 as 0, and a [MASK] agrees with every token.")
        for guesses in zip(*(taken_for(*asked[n]) for n in off)):  # one explains all that is wrong
            found = [of[k] for of, _ in guesses]
            teach(None in found or any(abs(guess - values[n]) >= 1e-3
                                       for guess, n in zip(found, off)), where + guesses[0][1])
        teach(False, where)


def check_breaks_at(solution):
    for p in (0.5, ODDS, 0.9, 0.2):
        value = number(solution.breaks_at(p), "breaks_at")
        right = -p * math.log(p) - (1 - p) * math.log(1 - p)
        said = f"breaks_at({p}) is {right:.4f} nats; yours: {value:.4f}. "
        for guess, lesson in (
                (math.log(2), "That is ln 2, for even odds; unequal ones leave less open."),
                (2 * right, "That is the sum of both entropies. EB-Sampler leaves the largest one "
                 "of them out: one word alone always fits."),
                (right / math.log(2), "That is in bits: take the natural logarithm."),
                (-math.log(p), "That is what one of the choices tells. Average over both, each "
                 "with its probability."),
                (0, "They do not fit for free: what is the bound of two tied words, by your "
                 "function `bound`?")):
            teach(abs(value - right) < 1e-4 or abs(value - guess) >= 1e-4, said + lesson)
        teach(abs(value - right) < 1e-4, said + "Both words have the same entropy; the bound is "
              "their sum less the larger one.")


def show(solution):
    """The student's numbers for some words of a first pass; EB-Sampler on either side of the number
    at which it breaks."""
    some, at = told(), number(solution.breaks_at(ODDS), "breaks_at")
    tokens, lines = torch.full_like(some.captions[0], shipped()[0].config.mask_id), []
    for places, name in (([4, 5], "tied: of one wording"), ([0, 1, 2], "tied: the opening"),
                         ([3, 4], "the first word says more"), ([0, 4], "independent"),
                         ([0, 4, 5], "two of them tied")):
        found = (number(some.ask(function, tokens, places), "") for function in (
            solution.joint_error, solution.bound))
        lines.append(f"{', '.join(map(str, places)):9s}{name:26s}"
                     + "".join(f"{value:12.3f}" for value in found))
    row = []
    for limit in (at - BESIDE, at + BESIDE, math.log(2) + BESIDE):
        right, wrong, passes = graded(exact_way(
            scenes(60), resolve(f"eb_sampler:{limit:.4f}"), temperature=1.0), scenes(60))
        row.append(f"eb_sampler:{limit:.4f}  {sum(right) / 60:7.1%} right in "
                   f"{sum(passes) / 60:.2f} passes" + "".join(
                       f", {word} {wrong.count(word)}" for word in toy.MISTAKES if word in wrong))
    return "\n".join([
        f"The first pass of \"{words(some.captions[some.odds.argmax()])}\", in nats:",
        f"{'places':35s}{'joint error':>12s}{'bound':>12s}", *lines,
        f"Your breaks_at({ODDS}) = {at:.4f}. On the exact posterior, sampled, 60 scenes:", *row,
        "Which words does the last one commit together that the second did not?"])


test_exercise = exercise(check_numbers, check_breaks_at, show=show)
