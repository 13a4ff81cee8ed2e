"""Checks exercise 12: against data/exact.py, and pair by pair against every caption."""
import functools
import itertools
import math
import random
from typing import NamedTuple

import torch

from data import DESCRIBE, pad_responses, toy
from data.exact import Exact
from exercises.checks import MASK, TOKENIZER, ask, compare, number, teach, teach_tensor


class Told(NamedTuple):
    """All right captions of a scene."""
    captions: torch.Tensor  # (N, W) ids
    odds: torch.Tensor      # (N,)
    exact: Exact

    def window(self, share, seed):
        """One of the captions with about this share of it committed -> tokens (W,)."""
        g = torch.Generator().manual_seed(seed)
        caption = self.captions[torch.multinomial(self.odds, 1, generator=g)[0]]
        return torch.where(torch.rand(len(caption), generator=g) < share, caption, MASK)

    def agree(self, tokens):
        """-> which captions agree with what is committed, bool (N,)."""
        return ((self.captions == tokens) | (tokens == MASK)).all(1)

    def ask(self, function, tokens, *more):
        """The reader's function of these captions."""
        return ask(function, self.captions, self.odds, tokens, MASK, *more)

    def average(self, weight):
        """-> probs (W, vocab): the captions, by weight (N,)."""
        probs = torch.zeros(self.captions.shape[1], MASK + 1)
        return probs.scatter_add(1, self.captions.mT,
                                 (weight / weight.sum()).expand_as(self.captions.mT))

    def fits(self, tokens, i, j):
        """-> the pairs of tokens at i and j that some agreeing caption has."""
        return set(map(tuple, self.captions[self.agree(tokens)][:, [i, j]].tolist()))


@functools.cache
def told(objects=1, order="reading"):
    """A scene's captions, in a random order, with an EOS after each."""
    rng = random.Random(7)
    board = toy.TOYS["tiny"]._replace(fewest=objects, most=objects, order=order)
    scene, odds = toy.draw_scene(board, rng), toy.WORDINGS[board.wording]
    orders = list(itertools.permutations(scene)) if order == "free" else [scene]
    found = {toy.caption(things, board, opening, preposition, said):
             math.prod(odds[k] for k in said) / (8 * len(orders))
             for things, opening, preposition, *said in itertools.product(
                 orders, toy.OPENINGS, toy.PREPOSITIONS, *[range(len(odds))] * objects)}
    texts = rng.sample(list(found), len(found))
    W = len(TOKENIZER.encode(texts[0])) + 1
    return Told(pad_responses(texts, TOKENIZER, W)[0], torch.tensor([found[t] for t in texts]),
                Exact([scene], [DESCRIBE], board, TOKENIZER))


def cases():
    """Scenes' captions, and windows of them with some share committed."""
    for some in told(), told(2), told(2, "free"):
        for seed, share in enumerate((0, 0.1, 0.3, 0.6, 1)):
            yield some, some.window(share, seed)


def masked_places(tokens):
    return (tokens == MASK).nonzero()[:, 0].tolist()


def words(tokens):
    """A window in words."""
    return " ".join("_" if id == MASK else TOKENIZER.decode([id]).strip() or "<eos>"
                    for id in tokens.tolist())


def the_posterior(solution):
    for some, tokens in cases():
        probs = some.ask(solution.posterior, tokens)
        teach_tensor(probs, (len(tokens), MASK + 1), None, "posterior")
        where = f"With the window \"{words(tokens)}\" "
        total = probs.sum(1)
        teach((total - 1).abs().max() < 1e-3, where + "the probabilities of a position add up to "
              f"{total[(total - 1).abs().argmax()]:.3f}, not 1. Divide by the sum of the odds of "
              "those captions that agree. (A [MASK] agrees with every token.)")
        right = some.exact.look([0])(tokens[None])[0][0].exp()
        at, token = divmod((probs - right).abs().argmax().item(), MASK + 1)
        agrees = some.agree(tokens)
        any_of = (some.captions == tokens).any(1) | (tokens == MASK).all()
        compare(probs, right, {
            "All captions that agree count the same in yours; use their odds.":
                some.average(agrees.float()),
            "Leave out the captions that disagree with what is committed.": some.average(some.odds),
            "A caption must agree with all that is committed (all(1), not any(1)).":
                some.average(some.odds * any_of)},
            where + f"position {at} is \"{words(torch.tensor([token]))}\" with probability "
            f"{right[at, token]:.3f} (data/exact.py); yours: {probs[at, token]:.3f}. ")


def two_at_once(solution):
    for some, tokens in cases():
        agrees, pairs = some.agree(tokens), list(itertools.combinations(masked_places(tokens), 2))
        probs = some.average(some.odds * agrees)
        for i, j in random.Random(0).sample(pairs, min(24, len(pairs))):
            value = number(some.ask(solution.survives, tokens, i, j), "survives")
            right = sum(probs[i, a] * probs[j, b] for a, b in some.fits(tokens, i, j))
            each = probs[i, some.captions[:, i]] * probs[j, some.captions[:, j]]  # (N,)
            compare(value, right, {
                "The two are not drawn from a caption: each is drawn from its own row, so that a "
                "pair has the product of two probabilities.": 1,
                "That is how often both draw the same token.": (probs[i] * probs[j]).sum(),
                "Several captions share a pair of words. Count each pair once (unique, or a set).":
                    each[agrees].sum(),
                "That is the probability that they do NOT fit.": 1 - right},
                f"With the window \"{words(tokens)}\" draws for the positions {i} and {j} fit with "
                f"probability {right:.3f}; yours: {value:.3f}. ")


CHECKS = [the_posterior, two_at_once]


def in_turn(solution, some, tokens, i, j):
    """-> how often the two fit when j is drawn by the reader's posterior after i is committed."""
    pairs, probs, total = some.fits(tokens, i, j), some.ask(solution.posterior, tokens), 0
    for a in probs[i].nonzero()[:, 0].tolist():
        then = some.ask(solution.posterior, tokens.index_fill(0, torch.tensor(i), a))
        total += sum(probs[i, a] * then[j, b] for one, b in pairs if one == a)
    return float(total)


def show(solution):
    """The first pass of the reader's posterior, and what three pairs of it come to."""
    some, g, n = told(), torch.Generator().manual_seed(0), 2000
    tokens = torch.full_like(some.captions[0], MASK)
    probs, cells = some.ask(solution.posterior, tokens).float(), []
    for at, row in enumerate(probs):
        likely = zip(*row.topk(4))
        cells.append(f"{at:2d}  " + ", ".join(f"{words(id[None])} {p:.0%}"
                                              for p, id in likely if p > 0.001))
    half = (len(cells) + 1) // 2
    yield f"The first pass of your posterior, of \"{words(some.captions[some.odds.argmax()])}\":"
    for left, right in itertools.zip_longest(cells[:half], cells[half:], fillvalue=""):
        yield f"{left:48s}{right}".rstrip()
    yield "Two of its words fit together, if drawn ..."
    yield f"{'':26s}{'at once':>11s}{'2,000 drawn':>16s}{'in turn':>14s}"
    for i, j, name in ((4, 5, "of one wording"), (0, 1, "of one opening"),
                       (0, 4, "opening, wording")):
        drawn = zip(*(torch.multinomial(probs[at], n, True, generator=g).tolist() for at in (i, j)))
        counted = sum(pair in some.fits(tokens, i, j) for pair in drawn) / n
        at_once = float(some.ask(solution.survives, tokens, i, j))
        yield (f"{i} and {j}, {name:18s}{at_once:11.1%}{counted:16.1%}"
               f"{in_turn(solution, some, tokens, i, j):14.1%}")
    yield "Which positions could the first pass commit together, and never be wrong?"
