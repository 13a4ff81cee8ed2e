"""Checks exercise 13: numbers from the list of captions, then EB-Sampler on the exact posterior."""
import itertools
import math
import random

import torch

from data import toy
from exercises.checks import compare, mean, measured, number, teach
from exercises.checks.exact_posterior import MASK, cases, masked_places, told, words

ODDS = toy.WORDINGS["two"][0]
BESIDE = 0.002  # nats: how far below and above the reader's number
BITS = "That is in bits: take the natural logarithm."


def entropy(some, places, weight):
    """Of the captions' joint distribution at `places`, in nats."""
    _, outcome = some.captions[:, places].unique(dim=0, return_inverse=True)
    probs = torch.zeros(len(weight)).double().index_add(0, outcome, (weight / weight.sum()).double())
    return torch.special.entr(probs).sum().item()


def right_and_wrong(some, tokens, places):
    """-> joint error and bound; of each, what is easily taken for it, by lesson."""
    agrees = some.agree(tokens)
    alone = lambda weight: [entropy(some, [place], weight) for place in places]
    joint = lambda places, weight: (sum(entropy(some, [place], weight) for place in places)
                                    - entropy(some, places, weight))
    weight = some.odds * agrees
    single, error = alone(weight), joint(places, weight)
    bound = sum(single) - max(single)
    all_alike, all_of_them = alone(agrees.float()), alone(some.odds)
    captions = torch.special.entr(weight / weight.sum()).sum().item()
    alike = "All captions that agree count the same in yours; use their odds."
    nothing = "That is of all captions, as if nothing were committed: leave out those that disagree."
    other = ("That is the other of the two: joint_error has the entropy of all words together, "
             "bound has the largest entropy of a single one.")
    return (error, bound), ({
        BITS: error / math.log(2), nothing: joint(places, some.odds),
        alike: joint(places, agrees.float()), other: bound,
        "You subtract the entropy of whole captions. Captions that are alike at the places are one "
        "outcome: add up their odds first.": sum(single) - captions,
        "You add up what each pair shares. Three words that are tied share less than three pairs "
        "do: the third tells nothing new. Take them all together.":
            sum(joint(list(pair), weight) for pair in itertools.combinations(places, 2)),
        "The sign is the wrong way round.": -error,
        "That is the entropy of all words together: subtract it from the sum of the single ones.":
            entropy(some, places, weight)}, {
        BITS: bound / math.log(2), nothing: sum(all_of_them) - max(all_of_them),
        alike: sum(all_alike) - max(all_alike), other: error,
        "That is the sum of the entropies; nothing is subtracted.": sum(single),
        "You subtract the smallest entropy, not the largest.": sum(single) - min(single),
        "That is the largest entropy itself: subtract it from the sum.": max(single)})


def joint_error_and_bound(solution):
    asked, rng = [], random.Random(0)
    for some, tokens in cases():
        masked = masked_places(tokens)
        asked += [(some, tokens, sorted(rng.sample(masked, n)))
                  for n in (2, 2, 2, 2, 3, 3, 3, 6, 1) if n <= len(masked)]
    found = [right_and_wrong(*one) for one in asked]
    for k, name in enumerate(("joint_error", "bound")):
        mine = [number(some.ask(getattr(solution, name), tokens, places), name)
                for some, tokens, places in asked]
        right, wrong = [one[0][k] for one in found], [one[1][k] for one in found]
        off = max(range(len(asked)), key=lambda n: abs(mine[n] - right[n]) >= 1e-3 or mine[n] != mine[n])
        said = (f"With the window \"{words(asked[off][1])}\" and the places {asked[off][2]} {name} is "
                f"{right[off]:.3f} nats; yours: {mine[off]:.3f}. ")
        teach(not math.isnan(mine[off]), said + "0 * log(0) is no number, and 0 / 0 is none: "
              "entr(p) takes 0 ln 0 as 0, and a [MASK] agrees with every token.")
        # a lesson must explain all that is wrong
        compare(mine, right, {lesson: [one[lesson] for one in wrong] for lesson in wrong[0]}, said)


def where_it_breaks(solution):
    for p in (0.5, ODDS, 0.9, 0.2):
        value = number(solution.breaks_at(p), "breaks_at")
        right = -p * math.log(p) - (1 - p) * math.log(1 - p)
        compare(value, right, {
            BITS: right / math.log(2),
            "That is ln 2, for even odds; unequal ones leave less open.": math.log(2),
            "That is the sum of both entropies. EB-Sampler leaves the largest one of them out: one "
            "word alone always fits.": 2 * right,
            "That is what one of the choices tells. Average over both, each with its probability.":
                -math.log(p),
            "They do not fit for free: what is the bound of two tied words, by your function "
            "`bound`?": 0}, f"breaks_at({p}) is {right:.4f} nats; yours: {value:.4f}. ", 1e-4)


CHECKS = [joint_error_and_bound, where_it_breaks]


def show(solution):
    """The reader's numbers for some words of a first pass; EB-Sampler on either side of the number
    at which it breaks."""
    some, at = told(), number(solution.breaks_at(ODDS), "breaks_at")
    tokens, lines, row = torch.full_like(some.captions[0], MASK), [], []
    for places, name in (([4, 5], "tied: of one wording"), ([0, 1, 2], "tied: the opening"),
                         ([3, 4], "the first word says more"), ([0, 4], "independent"),
                         ([0, 4, 5], "two of them tied")):
        found = [some.ask(function, tokens, places)
                 for function in (solution.joint_error, solution.bound)]
        lines.append("{:9s}{:26s}{:12.3f}{:12.3f}".format(
            ", ".join(map(str, places)), name, *map(float, found)))
    for limit in (at - BESIDE, at + BESIDE, math.log(2) + BESIDE):
        found = measured(f"eb_sampler:{limit:.4f}", 60, "exact", 1.0)
        row.append(f"eb_sampler:{limit:.4f}  {mean(found.right):7.1%} right in "
                   f"{mean(found.passes):.2f} passes" + "".join(
                       f", {word} {found.wrong.count(word)}" for word in toy.MISTAKES
                       if word in found.wrong))
    return "\n".join([
        f"The first pass of \"{words(some.captions[some.odds.argmax()])}\", in nats:",
        f"{'places':35s}{'joint error':>12s}{'bound':>12s}", *lines,
        f"Your breaks_at({ODDS}) = {at:.4f}. On the exact posterior, sampled, 60 scenes:", *row,
        "Which words does the last one commit together that the second did not?"])
