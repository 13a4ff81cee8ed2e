"""Checks exercise 12: against data/exact.py, and pair by pair against every caption."""
import functools
import itertools
import math
import random
from typing import NamedTuple

import torch

from data import DESCRIBE, pad_responses, toy
from data.exact import Exact
from exercises.checks import exercise, shipped, teach, teach_tensor

__all__ = ["test_exercise"]
SHARES = (0, 0.1, 0.3, 0.6, 1)  # committed


class Told(NamedTuple):
    """All right captions of a scene."""
    captions: torch.Tensor  # (N, W) ids
    odds: torch.Tensor      # (N,)
    exact: Exact

    def window(self, share, seed):
        """One of the captions with about this share of it committed -> tokens (W,)."""
        g = torch.Generator().manual_seed(seed)
        caption = self.captions[torch.multinomial(self.odds, 1, generator=g)[0]]
        committed = torch.rand(len(caption), generator=g) < share
        return torch.where(committed, caption, shipped()[0].config.mask_id)

    def agree(self, tokens):
        """-> which captions agree with what is committed, bool (N,)."""
        return ((self.captions == tokens) | (tokens == shipped()[0].config.mask_id)).all(1)

    def ask(self, function, tokens, *more):
        """The student's function of these captions, which must leave its arguments alone."""
        given = [x.clone() for x in (self.captions, self.odds, tokens)]
        answer = function(*given, shipped()[0].config.mask_id, *more)
        teach(all(torch.equal(x, y) for x, y in zip(given, (self.captions, self.odds, tokens))),
              f"{function.__name__} changes its arguments. The next pass still needs all captions "
              "and their odds: make new tensors (odds * agrees, torch.where).")
        return answer


@functools.cache
def told(objects=1, order="reading"):
    """A scene's captions, in a random order, with an EOS after each."""
    rng, tokenizer = random.Random(7), shipped()[1]
    board = toy.TOYS["tiny"]._replace(fewest=objects, most=objects, order=order)
    scene, odds = toy.draw_scene(board, rng), toy.WORDINGS[board.wording]
    orders = list(itertools.permutations(scene)) if order == "free" else [scene]
    found = {toy.caption(things, board, opening, preposition, said):
             math.prod(odds[k] for k in said) / (8 * len(orders))
             for things, opening, preposition, *said in itertools.product(
                 orders, toy.OPENINGS, toy.PREPOSITIONS, *[range(len(odds))] * objects)}
    texts = rng.sample(list(found), len(found))
    W = len(tokenizer.encode(texts[0])) + 1
    return Told(pad_responses(texts, tokenizer, W)[0], torch.tensor([found[t] for t in texts]),
                Exact([scene], [DESCRIBE], board, tokenizer))


def cases():
    """Scenes' captions, and windows of them."""
    for some in told(), told(2), told(2, "free"):
        for seed, share in enumerate(SHARES):
            yield some, some.window(share, seed)


def words(tokens):
    """A window in words, for a lesson."""
    tokenizer, mask_id = shipped()[1], shipped()[0].config.mask_id
    return " ".join("_" if id == mask_id else tokenizer.decode([id]).strip() or "<eos>"
                    for id in tokens.tolist())


def number(value, what):
    """What the student's function returned, as a float."""
    one = isinstance(value, (int, float)) or (
        isinstance(value, torch.Tensor) and value.numel() == 1)
    teach(one, f"{what} must return a number, not {type(value).__name__}"
          f"{f' of shape {tuple(value.shape)}' if isinstance(value, torch.Tensor) else ''}.")
    return float(value)


# ---------------------------------------------------------------- the posterior

def average(captions, weight):
    """-> probs (W, vocab), of captions (N, W) by weight (N,)."""
    probs = torch.zeros(captions.shape[1], shipped()[0].config.mask_id + 1)
    return probs.scatter_add(1, captions.mT, (weight / weight.sum()).expand_as(captions.mT))


def mistaken(some, tokens):
    """What is easily taken for the posterior -> the lesson."""
    mask_id = shipped()[0].config.mask_id
    agrees, known = some.agree(tokens), tokens != mask_id
    right = average(some.captions, some.odds * agrees)
    yield (average(some.captions, agrees.float()), "All captions that agree count the same in "
           "yours; the odds say how often each is used.")
    yield (average(some.captions, some.odds), "That is the average of all captions, as if nothing "
           "were committed: leave out those that disagree.")
    if known.any():
        yield (average(some.captions, some.odds * (some.captions == tokens)[:, known].any(1)),
               "A caption that has one of the committed tokens still counts in yours: it must "
               "agree with all of them (all(1), not any(1)).")
    yield (average(some.captions, (some.odds * agrees) ** 2), "The odds enter twice.")
    top = torch.zeros_like(right).scatter(1, right.argmax(1, keepdim=True), 1.0)
    yield (top, "That is the most probable token of each position. The posterior keeps all of "
           "them, with their probabilities.")


def check_posterior(solution):
    for some, tokens in cases():
        probs = some.ask(solution.posterior, tokens)
        if getattr(probs, "is_floating_point", bool)():
            probs = probs.float()
        mask_id = shipped()[0].config.mask_id
        teach_tensor(probs, (len(tokens), mask_id + 1), torch.float32, "posterior")
        where = f"With the window \"{words(tokens)}\" "
        teach(probs.isfinite().all(), where + "your posterior has values that are no numbers. Does "
              "no caption agree, so that you divide by 0? A [MASK] agrees with every token: "
              "compare committed positions only.")
        total = probs.sum(1)
        teach((total - 1).abs().max() < 1e-3, where + "the probabilities of a position add up to "
              f"{total[(total - 1).abs().argmax()]:.3f}, not 1. The odds of those captions that "
              "agree add up to less than 1: divide by their sum.")
        right = some.exact.look([0])(tokens[None])[0][0].exp()
        off = (probs - right).abs()
        if off.max() < 1e-3:
            continue
        why = next((lesson for guess, lesson in mistaken(some, tokens)
                    if torch.allclose(guess, probs, atol=1e-3)), "")
        at, token = divmod(off.argmax().item(), mask_id + 1)
        word = words(torch.tensor([token]))
        teach(False, where + f"position {at} is \"{word}\" with probability "
              f"{right[at, token]:.3f} (data/exact.py); yours: {probs[at, token]:.3f}. {why}")


# ---------------------------------------------------------------- two at once

def fits(some, tokens, i, j):
    """-> the pairs of tokens at i and j that some agreeing caption has."""
    return set(map(tuple, some.captions[some.agree(tokens)][:, [i, j]].tolist()))


def at_once(some, tokens, i, j):
    """-> the probability that two draws fit; and what is easily taken for it: (value, lesson)."""
    weight = some.odds * some.agree(tokens)
    weight = weight / weight.sum()
    probs, prior = average(some.captions, weight), average(some.captions, some.odds)
    pairs = fits(some, tokens, i, j)
    right = sum(probs[i, a] * probs[j, b] for a, b in pairs).item()
    all_pairs = set(map(tuple, some.captions[:, [i, j]].tolist()))
    each = probs[i, some.captions[:, i]] * probs[j, some.captions[:, j]]  # (N,)
    return right, [
        (1.0, "You add up how often the captions have each pair, which is 1 for any i and j. But "
         "the two are not drawn from a caption: each is drawn from its own row, so that a pair has "
         "the product of two probabilities."),
        ((probs[i] * probs[j]).sum().item(), "That is how often both draw the same token. They "
         "need not be equal, but together in a caption."),
        (each[some.agree(tokens)].sum().item(), "Several captions share a pair of words, and you "
         "count it once for each of them. Count each pair once (unique, or a set)."),
        ((weight * probs[j, some.captions[:, j]]).sum().item(), "That is how often j draws the "
         "word of one caption, drawn before. It is enough that ANY caption has both words."),
        ((weight * each).sum().item(), "You weigh each pair with the captions' odds once more. The "
         "captions only say whether a pair may be; how often it is drawn, the two rows say."),
        ((probs[i].max() * probs[j].max()).item(), "That is the probability of the likeliest pair "
         "alone."),
        (sum(prior[i, a] * prior[j, b] for a, b in all_pairs).item(), "That leaves out what is "
         "committed."),
        (1 - right, "That is the probability that they do NOT fit.")]


def check_survives(solution):
    for some, tokens in cases():
        masked = (tokens == shipped()[0].config.mask_id).nonzero()[:, 0].tolist()
        pairs = list(itertools.combinations(masked, 2))
        for i, j in random.Random(0).sample(pairs, min(24, len(pairs))):
            value = number(some.ask(solution.survives, tokens, i, j), "survives")
            right, others = at_once(some, tokens, i, j)
            why = next((lesson for guess, lesson in others if abs(guess - value) < 1e-3), "")
            teach(abs(value - right) < 1e-3, f"With the window \"{words(tokens)}\" draws for the "
                  f"positions {i} and {j} fit with probability {right:.3f}; yours: {value:.3f}. "
                  f"{why}")


# ---------------------------------------------------------------- what is shown

def in_turn(solution, some, tokens, i, j):
    """The same, when j is drawn by the student's posterior after i is committed."""
    pairs, probs, total = fits(some, tokens, i, j), some.ask(solution.posterior, tokens), 0
    for a in probs[i].nonzero()[:, 0].tolist():
        then = some.ask(solution.posterior, tokens.clone().index_fill(0, torch.tensor(i), a))
        total += sum(probs[i, a] * then[j, b] for one, b in pairs if one == a)
    return float(total)


def show(solution):
    """The first pass of the student's posterior, and what three pairs of it come to."""
    some, mask_id = told(), shipped()[0].config.mask_id
    tokens = torch.full_like(some.captions[0], mask_id)
    probs, g = some.ask(solution.posterior, tokens).float(), torch.Generator().manual_seed(0)
    cells, lines = [], []
    for at, row in enumerate(probs):
        likely = row.topk(4)
        cells.append(f"{at:2d}  " + ", ".join(f"{words(id[None])} {p:.0%}" for p, id in zip(
            likely.values, likely.indices) if p > 0.001))
    half = (len(cells) + 1) // 2
    table = [f"{left:48s}{right}".rstrip()
             for left, right in itertools.zip_longest(cells[:half], cells[half:], fillvalue="")]
    for i, j, name in ((4, 5, "of one wording"), (0, 1, "of one opening"),
                       (0, 4, "opening, wording")):
        pairs, n = fits(some, tokens, i, j), 2000
        drawn = zip(*(torch.multinomial(probs[at], n, True, generator=g).tolist()
                      for at in (i, j)))
        counted = sum(pair in pairs for pair in drawn) / n
        at_once_ = number(some.ask(solution.survives, tokens, i, j), "survives")
        lines.append(f"{i} and {j}, {name:18s}{at_once_:11.1%}{counted:16.1%}"
                     f"{in_turn(solution, some, tokens, i, j):14.1%}")
    return "\n".join([
        f"The first pass of your posterior, of \"{words(some.captions[some.odds.argmax()])}\":",
        *table, "Two of its words fit together, if drawn ...",
        f"{'':26s}{'at once':>11s}{'2,000 drawn':>16s}{'in turn':>14s}", *lines,
        "Which positions could the first pass commit together, and never be wrong?"])


test_exercise = exercise(check_posterior, check_survives, show=show)
