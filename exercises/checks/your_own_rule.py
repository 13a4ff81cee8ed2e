"""Checks exercise 5 on 60 held-out scenes: right and few passes, each example on its own."""
import functools

import torch

from exercises.checks import exercise, scenes, teach, way
from lab.board import grade_rule

__all__ = ["test_exercise"]
N, MOST, STRETCH = 60, 7, 4.5
WORSE = 2.5 / N  # two scenes, whatever the rounding
WAYS = [(block, temperature) for block in ("trained", "exact") for temperature in (0.0, 1.0)]


@functools.cache
def measured(rule, block="trained", temperature=0.0):
    """-> share right, passes (a rule's own looks are some, too); of a rule, or of one of the
    board's by its name (`resolve` makes a new function each time)."""
    figures = grade_rule(way(rule, N, block, temperature), scenes(N)).figures
    return figures["right"], figures["passes"]


def check_each_example_on_its_own(solution):
    decoded = way(solution.rule, N)
    torch.manual_seed(0)
    batch = decoded(slice(0, 16))
    torch.manual_seed(0)
    alone = [decoded(slice(b, b + 1)) for b in range(16)]
    random = not torch.equal(decoded(slice(0, 16)).tokens, batch.tokens)
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
          "place), each position picks for itself, and they mix. Which positions may go together, "
          "and which has to see another's choice first?")
    teach(passes < count_passes / 2,
          mine + "Too slow: commit all that is sure at once, however many that are. (A look of the "
          "rule's own, step.look, is a pass, too.)")


def alone_in_a_pass(rule):
    """In how many iterations of a caption, on average, a single token is committed."""
    left = []

    def noting(step):
        left.append(step.masked.sum(1))
        return rule(step)
    way(noting, N)(slice(0, N))
    committed = torch.stack([*left, torch.zeros_like(left[0])]).diff(dim=0)  # (iterations, B)
    return (committed == -1).sum(0).double().mean().item()


def check_as_right_in_fewer_passes_than_confident(solution):
    right, passes, mine = said(solution)
    theirs, their_passes = measured("confident:0.9")
    mine += f"confident:0.9: {theirs:.1%} in {their_passes:.2f}. "
    teach(right > theirs - WORSE, mine + "Fast, but too few are right: committed together, "
          "undecided words mix. A lower threshold alone is not the way.")
    if passes > MOST:
        single = alone_in_a_pass(solution.rule)
        mine += f"In {single:.1f} of your passes a single token goes. "
        teach(passes < their_passes - 1, mine + "Look at a trace (python sample.py --seed 9 --rule "
              "FILE): what does such a token decide, and what happens in the pass after it? (Of "
              "committed positions there is a confidence, too, a high one: an argmax or topk over "
              "all positions finds those, and they are ignored.)")
        teach(False, mine + f"Fewer than before, and still more than {MOST}: must each of these go "
              "alone? What may be in a pass together with it, so that nothing mixes?")


def show(solution):
    """The student's row beside two of the board's."""
    found = {"maskgit:2": [measured("maskgit:2")],
             "confident:0.9": [measured("confident:0.9", *one) for one in WAYS],
             "yours": [measured(solution.rule, *one) for one in WAYS]}
    rows = [f"{name:14s}" + "".join(f"{right:11.1%} {passes:5.2f}" for right, passes in figures)
            for name, figures in found.items()]
    reached = all(right > theirs - WORSE and passes <= STRETCH
                  for (right, passes), (theirs, _) in zip(found["yours"], found["confident:0.9"]))
    return "\n".join([
        f"Fully right, and passes, of {N} scenes, on the trained weights and on the exact "
        "posterior, greedy and sampled:", " " * 14 + "".join(
            f"{name:>17s}" for name in ("trained, greedy", "sampled", "exact, greedy", "sampled")),
        *rows, f"Stretch goal (in each column as right as confident:0.9 but for two scenes, in at "
        f"most {STRETCH} passes): {'reached' if reached else 'not yet'}.",
        "The whole board: python -m lab rules --rule FILE"])


test_exercise = exercise(check_each_example_on_its_own, check_beats_fixed_counts,
                         check_as_right_in_fewer_passes_than_confident, show=show)
