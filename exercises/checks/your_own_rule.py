"""Checks exercise 5 on 60 held-out scenes: right and few passes, each example on its own."""
import functools

import torch

from exercises.checks import exercise, scenes, shipped, teach
from lab import evaluate
from lab.board import grade_rule
from rules import checked, resolve

__all__ = ["test_exercise"]
N, MOST = 60, 7


def decoded(rule, rows):
    return evaluate.decoded(shipped()[0], scenes(N)[rows], rule)


@functools.cache
def measured(rule):
    """-> share right, passes (a rule's own looks are some, too); of a rule, or of one of the
    board's by its name (`resolve` makes a new function each time)."""
    rule = resolve(rule) if isinstance(rule, str) else checked(rule, "rule")
    figures = grade_rule(lambda rows: decoded(rule, rows), scenes(N)).figures
    return figures["right"], figures["passes"]


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


def said(solution):
    """-> share right, passes, and both in words."""
    right, passes = measured(solution.rule)
    return right, passes, f"Your rule: {right:.1%} fully right in {passes:.2f} passes. "


def check_beats_fixed_counts(solution):
    right, passes, mine = said(solution)
    count_right, count_passes = measured("maskgit:2")
    mine += f"maskgit:2: {count_right:.1%} in {count_passes:.2f}. "
    teach(right >= count_right,
          mine + "Too few are right. Tokens committed in one iteration are chosen independently of "
          "each other: where two are nearly as good (at or in; an object's size first, or its "
          "place), each position picks for itself, and they mix. Commit one of them and let the "
          "others see it.")
    teach(passes < count_passes / 2,
          mine + "Too slow: commit all that is sure at once, however many that are. (A look of the "
          "rule's own, step.look, is a pass, too.)")


def check_as_right_in_fewer_passes_than_confident(solution):
    right, passes, mine = said(solution)
    theirs, their_passes = measured("confident:0.9")
    mine += f"confident:0.9: {theirs:.1%} in {their_passes:.2f}. "
    teach(right > theirs - 2.5 / N, mine + "Fast, but too few are right: committed together, "
          "undecided words mix. A lower threshold alone is not the way.")
    teach(passes <= MOST,
          mine + "Look at a trace: confident decoding settles an open choice alone, commits what "
          "follows from it in the next iteration, and so on. Could an open choice be settled while "
          "sure ones are committed, one at a time? (If you do that and gain nothing: is your best "
          "one taken among masked positions that are not sure? Committed positions have a high "
          "confidence, too.)")
    print("\n" + mine + "The whole board: python -m lab rules --rule FILE")


test_exercise = exercise(check_each_example_on_its_own, check_beats_fixed_counts,
                         check_as_right_in_fewer_passes_than_confident)
