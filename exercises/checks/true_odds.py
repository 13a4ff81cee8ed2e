"""Checks exercise 9: the share that wins, the rule on made-up steps; then counts wordings."""
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
            "That is the word's own probability. Each place draws, and the surest is committed.": p,
            "One place that drew the first word is enough: it is then surest.": q ** n,
            "That is how often the second word comes out.": (1 - q) ** n,
            "At a temperature a word is drawn with probability p ** (1 / temperature), divided by "
            "the sum of both.": 1 - (1 - p) ** n},
            f"likelier_wins({p}, {n}, {temperature}) is {1 - (1 - q) ** n:.4f}; yours: "
            f"{value:.4f}. ")


def the_rule(solution):
    """On steps in which all, some or none exceed 0.9; one example is finished."""
    for seed in range(24):
        g = torch.Generator().manual_seed(seed)
        logits = (1 + seed % 4 * 2) * torch.randn(4, 9, CONFIG.vocab_size, generator=g)
        tokens = torch.where(torch.rand(4, 9, generator=g) < 0.3, 7, MASK)
        tokens[:3, 0], tokens[3] = MASK, 7
        step = Step(seed, 96, tokens, tokens < 0, logits, None, MASK, EOS, {}, seed % 2 * 3.0, g)
        peak, drawn = (x.masked_fill(~step.masked, -1)
                       for x in (step.probs.amax(-1), step.confidence))
        proposal, named = step.proposal.clone(), solution.rule(step)
        teach_tensor(named, (4, 9), torch.bool, "what the rule returns")
        teach(torch.equal(step.proposal, proposal), "Your rule changes step.proposal, what was "
              "drawn. Choose places only.")
        teach((named & step.masked).any(1)[:3].all(), "Where none exceeds the threshold yours "
              "names no place. The loop then takes the most probable of the drawn words: name the "
              "place yourself.")
        by_peak, by_the_draw = (((x > 0.9) | (x == x.amax(1, keepdim=True))) & step.masked
                                for x in (peak, drawn))
        teach(torch.equal(named & step.masked, by_peak),
              "Yours still goes by the drawn words: step.confidence is the probability of "
              "step.proposal." if torch.equal(named & step.masked, by_the_draw) else
              "Commit each place whose likeliest word exceeds the threshold; if there is none, the "
              "masked place where it is most probable. Each example on its own (dim=1).")


CHECKS = [the_share_that_wins, the_rule]


def first_wordings(texts):
    """Captions of the first scenes -> the share of their objects told in the first wording."""
    some = scenes(N)
    return mean([any(some.board.phrase(thing, by, 0) in text for by in toy.PREPOSITIONS)
                 for text, scene in zip(texts, some.split.scenes) for thing in scene])


def show(solution):
    """The reader's numbers; how often the first wording comes out, of two models by three rules."""
    yield "How often 0.55 wins over 0.45, by your likelier_wins:"
    for temperature in (1.0, 0.2):
        cells = [f"n = {n}: {float(solution.likelier_wins(0.55, n, temperature)):.1%}"
                 for n in (1, 2, 10)]
        yield f"  temperature {temperature:g}: {', '.join(cells)}"
    yield f"The first wording's share in {N} captions at temperature 1 (its odds: 55%):"
    yield f"{'':24s}{'perfect model':>30s}{'trained weights':>30s}"
    for name, rule in {"confident:0.9": "confident:0.9", "yours": solution.rule,
                       "dimple_public:random=1": "dimple_public:random=1"}.items():
        found = [measured(rule, N, block, 1.0) for block in ("exact", "trained")]
        cells = [f"{first_wordings(one.texts):.0%}, {mean(one.right):.0%} right, "
                 f"{mean(one.passes):.1f} passes" for one in found]
        yield "{:24s}{:>30s}{:>30s}".format(name, *cells)
    yield "Which of these does a share of right captions rank first, and is it the best sampler?"
