"""Checks exercise 11: measures what was guessed."""
import functools
import random

import torch

from exercises.checks import exercise, scenes, shipped, teach
from lab.claims import follow, make_priors
from lab.evaluate import decoded, graded
from lab.variants import unseen
from mini_dimple import confident, decode_ar, prefilled
from rules import resolve

N, WIDEST = 60, 20  # scenes; points


def share(way):
    return sum(graded(way, scenes(N))[0])


def by_rule(name, phase="diffusion", look=prefilled):
    rule = resolve(name)
    return share(lambda rows: decoded(shipped(phase)[0], scenes(N)[rows], rule, look))


def wrong_colour():
    (model, tokenizer), some, rng = shipped(), scenes(N), random.Random(0)
    of = lambda ids, scene: make_priors(ids, scene, model.config, tokenizer, some.board, rng)
    priors = [of(ids, scene)["the last object's colour, wrong"]
              for ids, scene in zip(some.responses, some.split.scenes)]
    windows = torch.stack([prior.window for prior in priors])
    answers = decoded(model, (*some[:N][:2], windows), confident(0.9)).tokens
    return sum(follow(answer, prior, tokenizer, some.board, model.config)[1]
               for answer, prior in zip(answers, priors))


QUESTIONS = {  # name -> how it is measured, what to read in the answer
    "confident:0.9": (
        lambda: by_rule("confident:0.9"),
        "What the picture leaves open is settled one choice at a time."),
    "confident:0.5": (
        lambda: by_rule("confident:0.5"),
        "An object's two wordings are nearly as good. One of them just passes one half at several "
        "places at once, and not the same one everywhere: they mix. Deeper: python -m lab claims "
        "confident"),
    "maskgit:4": (
        lambda: by_rule("maskgit:4"),
        "A count leaves all that is undecided to the last iterations, and commits it there "
        "together: the openings mix. Deeper: python -m lab rules"),
    "random_order:4": (
        lambda: by_rule("random_order:4"),
        "Careless, and better than the most confident first: undecided words are spread over the "
        "iterations, so that they seldom meet. Deeper: python -m lab rules"),
    "naive prefix": (
        lambda: by_rule("confident:0.9", look=unseen),
        "Other keys and values than in training, but of 11 positions only: hardly a caption goes "
        "wrong. Other weights care more. Deeper: python -m lab claims prefill"),
    "a wrong colour": (
        wrong_colour,
        "What is given is believed, and the rest is read off the picture. Deeper: python -m lab "
        "claims priors"),
    "AR weights, diffusion decoding": (
        lambda: by_rule("confident:0.9", "ar"),
        "It has never seen a [MASK], nor what follows a token. The weights are shared between the "
        "phases; the skill is not."),
    "diffusion weights, AR decoding": (
        lambda: share(lambda rows: decode_ar(shipped()[0], *scenes(N)[rows][:2], 48)),
        "800 steps in full attention, and nearly all of what the first phase learnt is gone."),
}
__all__ = ["test_exercise"]
measured = functools.cache(lambda question: 100 * QUESTIONS[question][0]() / N)


def form(question, guess):
    """-> low, high of a guess that is one."""
    teach(guess is not None, f"{question}: no guess yet. Write a range in percent, (low, high), in "
          "place of None, before you measure.")
    try:
        low, high = map(float, guess)
    except (TypeError, ValueError):
        teach(False,
              f"{question}: {guess!r} is no range. Write two numbers, (low, high), in percent.")
    teach(0 <= low <= high <= 100,
          f"{question}: {guess!r} must run from low to high, within 0 and 100 percent.")
    teach(high - low <= WIDEST, f"{question}: {guess!r} is {high - low:g} points wide; at most "
          f"{WIDEST}, or it is no guess.")
    teach(not 0 < low <= high <= 1,
          f"{question}: {guess!r} looks like fractions; the ranges are in percent, (90, 100).")
    return low, high


def check_guesses(solution):
    lessons = []
    guesses = {question: form(question, solution.GUESS.get(question)) for question in QUESTIONS}
    for question, (low, high) in guesses.items():
        value = measured(question)
        if not low <= value <= high:
            lessons.append(f"{question}: you guessed {low:g} to {high:g}%, measured {value:.0f}%. "
                           f"{QUESTIONS[question][1]}")
    held = f"{len(QUESTIONS) - len(lessons)} of {len(QUESTIONS)}"
    teach(not lessons, "\n".join([f"{held} ranges hold what was measured.", *lessons]))


def show(solution):
    lines = [f"{question:32s} {low:>6.0f} to {high:.0f}%{'':{3 - len(f'{high:.0f}')}} "
             f"{measured(question):>12.0f}%" for question, (low, high) in (
                 (question, form(question, solution.GUESS[question])) for question in QUESTIONS)]
    return "\n".join([f"{'':32s} you guessed    measured ({N} scenes)", *lines,
                      "Both fixed counts take 12 iterations. Why is the careful one the worse?"])


test_exercise = exercise(check_guesses, show=show)
