"""Checks exercise 5 on 60 held-out scenes: right and few iterations, each example on its own."""
import functools

import torch

from exercises.checks import exercise, scenes, shipped, teach
from lab import evaluate
from rules import checked, resolve

__all__ = ["test_exercise"]
N = 60


def decoded(rule, rows):
    return evaluate.decoded(shipped()[0], scenes(N)[rows], rule)


@functools.cache
def measured(rule):
    """-> share right, iterations; of a rule, or of one of the board's by its name (`resolve`
    makes a new function each time).

    A rule's own looks count as iterations, too: they are passes of the model as well."""
    rule = resolve(rule) if isinstance(rule, str) else checked(rule, "rule")
    texts, _, passes, _ = evaluate.caption(lambda rows: decoded(rule, rows), scenes(N))
    return sum(scenes(N).grade(texts)[0]) / N, sum(passes) / N


def check_each_example_on_its_own(solution):
    rule = checked(solution.rule, "rule")
    torch.manual_seed(0)
    batch = decoded(rule, slice(0, 16))
    torch.manual_seed(0)
    alone = [decoded(rule, slice(b, b + 1)) for b in range(16)]
    random = not torch.equal(decoded(rule, slice(0, 16)).tokens, batch.tokens)
    same = all(batch.iterations[b] == one.iterations[0]
               and torch.equal(batch.tokens[b], one.tokens[0]) for b, one in enumerate(alone))
    teach(random or same,
          "Your rule decides differently in a batch than for each example alone: max, topk, sort, "
          "mean or any run over the whole (B, W). Use dim=1: each row is an example of its own.")


def check_beats_fixed_counts(solution):
    right, iterations = measured(solution.rule)
    count_right, count_iterations = measured("maskgit:2")
    said = (f"Your rule: {right:.1%} fully right in {iterations:.2f} iterations. "
            f"maskgit:2: {count_right:.1%} in {count_iterations:.2f}. ")
    teach(right >= count_right - 0.02,
          said + "Too few are right. Tokens committed in one iteration are chosen independently of "
          "each other: where two words are equally good (at, in), each position picks for itself, "
          "and they mix. Commit one of them and let the others see it.")
    teach(iterations < count_iterations / 2,
          said + "Too slow: commit all that is sure at once, however many that are.")


def check_98_percent_in_fewer_iterations_than_confident(solution):
    right, iterations = measured(solution.rule)
    theirs = "confident:0.9: {:.1%} in {:.2f}. ".format(*measured("confident:0.9"))
    said = f"Your rule: {right:.1%} fully right in {iterations:.2f} iterations. {theirs}"
    teach(right >= 0.98, said + "Fast, but fewer than 98% are right: committed together, undecided "
          "words mix. A lower threshold alone is not the way.")
    teach(iterations <= 4, said + "Look at a trace: after its first iteration confident decoding "
          "settles an open choice alone, commits what follows from it in the next, and so on. "
          "Could an open choice be settled while sure ones are committed, one at a time? (If you "
          "do that and gain nothing: is your best one taken among masked positions that are not "
          "sure? Committed positions have a high confidence, too.)")
    print("\n" + said + "The whole board: python -m lab rules --rule FILE")


test_exercise = exercise(check_each_example_on_its_own, check_beats_fixed_counts,
                         check_98_percent_in_fewer_iterations_than_confident)
