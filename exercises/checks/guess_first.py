"""Checks exercise 11: measures what was guessed."""
import functools
import random
from unittest import mock

import torch

import bench
from exercises.checks import exercise, scenes, shipped, teach
from mini_dimple import confident, decode_ar
from rules import resolve

N, WIDEST = 60, 20  # scenes; points


def share(way):
    torch.manual_seed(0)
    return sum(bench.graded(way, scenes(N))[0])


def by_rule(name, phase="diffusion"):
    return share(lambda rows: bench.decoded(shipped(phase)[0], scenes(N)[rows], resolve(name)))


def naive_prefix():
    model, _ = shipped()
    with mock.patch.object(model.config, "prefix_mask", True):
        return share(lambda rows: bench.decoded(model, scenes(N)[rows], confident(0.9)))


def wrong_colour():
    (model, tokenizer), some, rng = shipped(), scenes(N), random.Random(0)
    priors = [bench.make_priors(ids, scene, model.config, tokenizer, some.board, rng)["one fact, wrong"]
              for ids, scene in zip(some.responses, some.split.scenes)]
    windows = torch.stack([prior.window for prior in priors])
    tokens = bench.decoded(model, (*some[:N][:2], windows), confident(0.9)).tokens
    return sum(bench.follow(t, prior, tokenizer, some.board, model.config)[1] for t, prior in zip(tokens, priors))


QUESTIONS = {  # name -> how it is measured, what to read in the answer
    "confident:0.9": (lambda: by_rule("confident:0.9"), "The picture settles nearly every word."),
    "confident:0.5": (lambda: by_rule("confident:0.5"), "Two prepositions are equally good. One of them just passes one half at several "
    "places "
                      "at once, and not the same one everywhere: they mix. Deeper: python bench.py confident"),
    "maskgit:10": (lambda: by_rule("maskgit:10"), "A count leaves all that is undecided to the last iterations, and commits it there "
    "together: "
                   "it mixes. Deeper: python bench.py rules"),
    "random_order:10": (lambda: by_rule("random_order:10"), "Careless, and better than the most confident first: undecided words are "
    "spread "
                        "over the iterations, so that they seldom meet. Deeper: python bench.py rules"),
    "naive prefix": (naive_prefix, "Other keys and values than in training, but of 11 positions only: a few captions go wrong. Other models may "
    "care less, or more. "
                     "Deeper: python bench.py prefill"),
    "a wrong colour": (wrong_colour, "What is given is believed, and the rest is read off the picture. Deeper: python bench.py priors"),
    "AR weights, diffusion decoding": (lambda: by_rule("confident:0.9", "ar"),
                                       "It has never seen a [MASK], nor what follows a token. The weights are shared between the phases; "
                                       "the skill is not."),
    "diffusion weights, AR decoding": (lambda: share(lambda rows: decode_ar(shipped()[0], *scenes(N)[rows][:2], 48)),
                                       "600 steps in full attention, and most of what the first phase learnt is gone; but not all."),
}
__all__ = ["test_exercise"]
measured = functools.cache(lambda question: 100 * QUESTIONS[question][0]() / N)


def form(question, guess):
    """-> low, high of a guess that is one."""
    teach(guess is not None, f"{question}: no guess yet. Write a range in percent, (low, high), in place of None, before you measure.")
    try:
        low, high = map(float, guess)
    except (TypeError, ValueError):
        teach(False, f"{question}: {guess!r} is no range. Write two numbers, (low, high), in percent.")
    teach(0 <= low <= high <= 100, f"{question}: {guess!r} must run from low to high, within 0 and 100 percent.")
    teach(high - low <= WIDEST, f"{question}: {guess!r} is {high - low:g} points wide; at most {WIDEST}, or it is no guess.")
    teach(not 0 < low <= high <= 1, f"{question}: {guess!r} looks like fractions; the ranges are in percent, (90, 100).")
    return low, high


def check_guesses(solution):
    guesses, lessons = {question: form(question, solution.GUESS.get(question)) for question in QUESTIONS}, []
    for question, (low, high) in guesses.items():
        value = measured(question)
        if not low <= value <= high:
            lessons.append(f"{question}: you guessed {low:g} to {high:g}%, measured {value:.0f}%. {QUESTIONS[question][1]}")
    teach(not lessons, "\n".join([f"{len(QUESTIONS) - len(lessons)} of {len(QUESTIONS)} ranges hold what was measured.", *lessons]))


test_exercise = exercise(check_guesses)
