"""Checks exercise 9: the share that wins, the rule on made-up steps; then captions are counted."""
import torch

from data import toy
from exercises.checks import (CONFIG, EOS, MASK, compare, mean, measured, number, scenes, teach,
                              teach_tensor)
from mini_dimple import Step

N = 100  # scenes


def the_share_that_wins(solution):
    for p, n, temperature in ((0.55, 1, 1), (0.55, 2, 1), (0.55, 10, 1), (0.7, 3, 1),
                              (0.55, 1, 0.2), (0.6, 3, 0.5)):
        value = number(solution.likelier_wins(p, n, temperature), "likelier_wins")
        q = p ** (1 / temperature) / (p ** (1 / temperature) + (1 - p) ** (1 / temperature))
        compare(value, 1 - (1 - q) ** n, {
            "That is the word's own probability. Each place draws, and the surest of them is "
            "committed.": p,
            "One place that drew the first word is enough, as it is then surest. All n need not.":
                q ** n,
            "That is how often the second word comes out.": (1 - q) ** n,
            "At a temperature a word is drawn with probability p ** (1 / temperature), divided by "
            "the sum of both.": 1 - (1 - p) ** n},
            f"likelier_wins({p}, {n}, {temperature}) is {1 - (1 - q) ** n:.4f}; yours: "
            f"{value:.4f}. ")


def steps():
    """Steps in which all, some or none exceed 0.9, some tokens committed, of one window each with
    two draws: a proposal's likeliest words, and others."""
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)
        logits = (1 + seed % 4 * 2) * torch.randn(4, 9, CONFIG.vocab_size, generator=g)
        tokens = torch.where(torch.rand(4, 9, generator=g) < 0.3, 7, MASK)
        tokens[0, 0] = MASK
        tokens[3] = 7  # finished
        for temperature in (0.0, 3.0):
            yield Step(seed, 96, tokens, torch.zeros_like(tokens, dtype=torch.bool), logits,
                       None, MASK, EOS, {}, temperature, g)


def the_rule(solution):
    for step in steps():
        masked, proposal = step.masked.clone(), step.proposal.clone()
        peak = step.probs.amax(-1).masked_fill(~masked, -1)
        drawn = step.confidence.masked_fill(~masked, -1)
        named = solution.rule(step)
        teach_tensor(named, (4, 9), torch.bool, "what the rule returns")
        new = step.commit(named)
        for b in range(3):
            right, by_the_draw = (((score[b] > 0.9) | (score[b] == score[b].max())) & masked[b]
                                  for score in (peak, drawn))
            mine = new[b] != step.tokens[b]
            where = (f"With the likeliest words' probabilities {in_a_row(peak[b])} (- is committed "
                     f"already) and the drawn words' {in_a_row(drawn[b])} the places "
                     f"{places(right)} are to be committed; yours: {places(mine)}. ")
            if torch.equal(mine, right):
                continue
            teach(named[b].logical_and(masked[b]).any(), where + "Where yours names none, the loop "
                  "takes the place of the most probable drawn word. Name one yourself.")
            teach(not torch.equal(mine, by_the_draw), where + "Yours still goes by the drawn "
                  "words: step.confidence is the probability of step.proposal.")
            teach(False, where + "Commit each place whose likeliest word exceeds the threshold, "
                  "else the one where it is most probable; each example on its own (dim=1).")
        teach(torch.equal(step.proposal, proposal), "Your rule changes what was drawn "
              "(step.proposal). Then it no longer samples; choose places only.")


def in_a_row(values):
    return " ".join("-" if value < 0 else f"{value:.2f}" for value in values.tolist())


def places(where):
    return where.nonzero()[:, 0].tolist()


CHECKS = [the_share_that_wins, the_rule]


def first_wordings(texts):
    """Captions of the first scenes -> which share of their objects is told in the first wording."""
    some = scenes(N)
    told = [any(some.board.phrase(thing, by, 0) in text for by in toy.PREPOSITIONS)
            for text, scene in zip(texts, some.split.scenes) for thing in scene]
    return mean(told)


def show(solution):
    """The reader's numbers; how often the first wording comes out, of two models by three rules."""
    yield "How often 0.55 wins over 0.45, by your likelier_wins:"
    for temperature in (1.0, 0.2):
        cells = [f"n = {n}: {float(solution.likelier_wins(0.55, n, temperature)):.1%}"
                 for n in (1, 2, 10)]
        yield f"  temperature {temperature:g}: {', '.join(cells)}"
    yield f"The first wording's share in {N} captions at temperature 1 (its odds: 55%):"
    yield f"{'':28s}{'perfect model':>30s}{'trained weights':>30s}"
    for name, rule in {"confident:0.9": "confident:0.9", "yours": solution.rule,
                       "dimple_public:random=1": "dimple_public:random=1"}.items():
        found = [measured(rule, N, block, 1.0) for block in ("exact", "trained")]
        cells = [f"{first_wordings(one.texts):.0%}, {mean(one.right):.0%} right, "
                 f"{mean(one.passes):.1f} passes" for one in found]
        yield "{:28s}{:>30s}{:>30s}".format(name, *cells)
    yield "Which of these does a share of right captions rank first, and is it the best sampler?"
