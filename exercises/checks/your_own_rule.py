"""Checks exercise 5 on 60 held-out scenes: right and few passes, each example on its own."""
import torch

from exercises.checks import mean, measured, teach, way

N, MOST, STRETCH = 60, 7, 4.5
WORSE = 2.5 / N  # two scenes, whatever the rounding
WAYS = [(block, temperature) for block in ("trained", "exact") for temperature in (0.0, 1.0)]


def figures(rule, *one):
    """-> share right, passes (a rule's own looks are some, too)."""
    found = measured(rule, N, *one)
    return mean(found.right), mean(found.passes)


def each_example_on_its_own(solution):
    decoded = way(solution.rule, N)
    torch.manual_seed(0)
    batch = decoded(slice(16))
    random = not torch.equal(decoded(slice(16)).tokens, batch.tokens)
    alone = [decoded(slice(b, b + 1)) for b in range(16)]
    teach(random or all(batch.iterations[b] == one.iterations[0]
                        and torch.equal(batch.tokens[b], one.tokens[0])
                        for b, one in enumerate(alone)),
          "Your rule decides differently in a batch than for each example alone: max, topk, sort, "
          "mean or any run over the whole (B, W). Use dim=1: each row is an example of its own.")


def beside(solution, other, fewer, most, too_few, too_slow):
    """Fail unless at most `fewer` less of the captions are right than with another rule, in at most
    most(its passes) passes."""
    (right, passes), (theirs, their_passes) = figures(solution.rule), figures(other)
    said = (f"Your rule: {right:.1%} fully right in {passes:.2f} passes. {other}: {theirs:.1%} in "
            f"{their_passes:.2f}. ")
    teach(right >= theirs - fewer, said + too_few)
    teach(passes <= most(their_passes), said + too_slow)


def beats_a_fixed_count(solution):
    beside(solution, "maskgit:2", 0, lambda passes: passes / 2,
           "Too few are right. Tokens committed in one iteration are chosen independently: where "
           "two are nearly as good (at or in; an object's size first, or its place), they mix. "
           "Which has to see another's choice first?",
           "Too slow: commit all that is sure at once. (A look of the rule's own, step.look, is a "
           "pass, too.)")


def as_right_in_fewer_passes_than_confident(solution):
    beside(solution, "confident:0.9", WORSE, lambda _: MOST,
           "Fast, but too few are right: committed together, undecided words mix. A lower "
           "threshold alone is not the way.",
           f"More than {MOST}: in many of your passes a single token goes. Look at a trace (python "
           "sample.py --seed 9 --rule FILE): what does such a token decide, and what may go with "
           "it, so that nothing mixes? (Committed positions have a high confidence, too: an argmax "
           "over all positions finds those, and they are ignored.)")


CHECKS = [each_example_on_its_own, beats_a_fixed_count, as_right_in_fewer_passes_than_confident]


def show(solution):
    """The reader's row beside two of the board's."""
    found = {"maskgit:2": [figures("maskgit:2")],
             "confident:0.9": [figures("confident:0.9", *one) for one in WAYS],
             "yours": [figures(solution.rule, *one) for one in WAYS]}
    yield (f"Fully right, and passes, of {N} scenes, on the trained weights and on the exact "
           "posterior, greedy and sampled:")
    yield " " * 14 + "".join(
        f"{name:>17s}" for name in ("trained, greedy", "sampled", "exact, greedy", "sampled"))
    for name, cells in found.items():
        yield f"{name:14s}" + "".join(f"{right:11.1%} {passes:5.2f}" for right, passes in cells)
    reached = all(right > theirs - WORSE and passes <= STRETCH
                  for (right, passes), (theirs, _) in zip(found["yours"], found["confident:0.9"]))
    yield ("Stretch goal (in each column as right as confident:0.9 but for two scenes, in at most "
           f"{STRETCH} passes): {'reached' if reached else 'not yet'}.")
    yield "The whole board: python -m lab rules --rule FILE"
