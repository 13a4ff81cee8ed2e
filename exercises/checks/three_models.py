"""Checks exercise 15 on 64 held-out scenes: the board's three blocks, greedy and sampled."""
from exercises.checks import mean, measured, teach
from lab.board import BLOCKS

N, FEWER, MORE, MOST, BASE = 64, 2, 4, 6.1, "confident:0.9"  # of 2 N captions; passes
LIMIT = 96  # iterations, the loop's own

TOO_FEW = {
    "exact": "Too few, with the perfect model: so it is the rule's fault. Words of two wordings, "
             "0.55 and 0.45 likely, mix if committed together. Which open words may share a pass?",
    "trained": "Too few, though the perfect model has enough. A trained model's odds waver about "
               "the perfect one's, 0.55 and 0.45: is your threshold far enough from that?",
    "weak": f"At least {MORE} more must be right. An unsure model is often wrong where it is sure. "
            "step.probs has the committed positions, too: take back what has become improbable."}


def three_models(solution):
    for block in BLOCKS:
        mine, theirs = ([measured(rule, N, block, temperature) for temperature in (0.0, 1.0)]
                        for rule in (solution.rule, BASE))
        tell = lambda found: "{} of {} right in {:.2f} passes greedy, {} in {:.2f} sampled".format(
            sum(found[0].right), N, mean(found[0].passes),
            sum(found[1].right), mean(found[1].passes))
        said = f"{block}: {tell(mine)}; {BASE}: {tell(theirs)}. "
        endless = sum(n >= LIMIT for found in mine for n in found.iterations)
        teach(not endless, said + f"{endless} captions were ended by the limit of passes. A token "
              "that is taken back may be proposed, and doubted, again: count, in step.memory.")
        more = sum(sum(one.right) - sum(other.right) for one, other in zip(mine, theirs))
        teach(more >= (MORE if block == "weak" else -FEWER), said + TOO_FEW[block])
        passes = mean([mean(found.passes) for found in mine])
        teach(passes <= MOST, said + f"{passes:.2f} passes on average, more than {MOST}. One open "
              "choice may go with all that is sure. (step.look is a pass, too.)")


CHECKS = [three_models]


def show(solution):
    """The reader's row beside the board's."""
    ways = [(block, temperature) for block in BLOCKS for temperature in (0.0, 1.0)]
    yield f"Fully right of {N}, and passes:"
    yield " " * 14 + "".join(f"{f'{block}, ' + ('sampled' if t else 'greedy'):>17s}"
                             for block, t in ways)
    for name, rule in ((BASE, BASE), ("yours", solution.rule)):
        found = [measured(rule, N, *one) for one in ways]
        yield f"{name:14s}" + "".join(
            f"{sum(one.right):11d} {mean(one.passes):5.2f}" for one in found)
    yield "The whole board, on 300 scenes: python -m lab rules --rule FILE"
    yield "What does it cost where the model is perfect, and nothing needs a second thought?"
