"""Checks exercise 15 on 64 held-out scenes: the board's three blocks, greedy and sampled."""
import functools

from exercises.checks import exercise, scenes, teach, way
from lab.board import BLOCKS, grade_rule

__all__ = ["test_exercise"]
N, FEWER, MORE, MOST, BASE = 64, 2, 4, 6.1, "confident:0.9"  # of 2 N captions; passes
WAYS = [(block, temperature) for block in BLOCKS for temperature in (0.0, 1.0)]


@functools.cache
def measured(rule, block, temperature):
    """By a rule, or one of rules/ by its name -> how many of N captions are right, passes of one,
    how many captions the limit of passes had to end."""
    by, left = way(rule, N, block, temperature), []

    def noting(rows):
        out = by(rows)
        left.append((out.left > 0).sum().item())
        return out
    outcome = grade_rule(noting, scenes(N))
    return sum(outcome.right), outcome.figures["passes"], sum(left)


def check_a_block(solution, block):
    """A block of the board: its captions, greedy and sampled ones together, and passes of each."""
    ways = [(block, 0.0), (block, 1.0)]
    mine, theirs = ([measured(rule, *one) for one in ways] for rule in (solution.rule, BASE))
    right, their_right = (sum(one[0] for one in found) for found in (mine, theirs))
    tell = lambda found: "{} of {} right in {:.2f} passes greedy, {} in {:.2f} sampled".format(
        found[0][0], N, found[0][1], *found[1][:2])
    figures = f"{block}: {tell(mine)}; {BASE}: {tell(theirs)}. "
    if left := sum(one[2] for one in mine):
        teach(False, figures + f"{left} captions were ended by the limit of passes: your rule does "
              "not end by itself. A token that is taken back may be proposed again, and be doubted "
              "again: count in step.memory how often, and stop.")
    teach(block != "exact" or right >= their_right - FEWER, figures + "Too few, with the perfect "
          "model: so it is the rule's fault, not the model's. Of two wordings, about 0.55 and 0.45 "
          "likely, each word alone looks fair; committed together they mix. Which open words may "
          "share a pass?")
    teach(block != "trained" or right >= their_right - FEWER, figures + "Too few, though the "
          "perfect model has enough. A trained model's odds waver about the perfect one's, 0.55 "
          "for one of two wordings: is your threshold far enough from that? And does the rule take "
          "back what was right?")
    teach(block != "weak" or right >= their_right + MORE, figures + f"{right} of both, and at "
          f"least {their_right + MORE} must be right. An unsure model is often wrong where it is "
          "sure; and a wrong word, once committed, makes the others fit it. A later pass may know "
          "better: step.probs has the committed positions, too. What has become improbable can be "
          "taken back.")
    passes = sum(one[1] for one in mine) / 2
    teach(passes <= MOST, figures + f"{passes:.2f} passes on average, more than {MOST}: in how "
          "many of them does a single token go? One open choice may go with all that is sure. (A "
          "pass that takes back as much as it commits gains nothing, either; and step.look is a "
          "pass.)")


def show(solution):
    """The student's row beside two of the board's."""
    rows = [f"{name:14s}" + "".join("{:11d} {:5.2f}".format(*measured(rule, *one)[:2])
                                    for one in WAYS)
            for name, rule in ((BASE, BASE), ("yours", solution.rule))]
    heads = [f"{block}, {'sampled' if t else 'greedy'}" for block, t in WAYS]
    return "\n".join([f"Fully right of {N}, and passes:",
                      " " * 14 + "".join(f"{head:>17s}" for head in heads), *rows,
                      "The whole board, on 300 scenes: python -m lab rules --rule FILE",
                      "What does it cost where the model is perfect, and nothing needs a second "
                      "thought?"])


test_exercise = exercise(*(functools.partial(check_a_block, block=block) for block in BLOCKS),
                         show=show)
