"""Checks exercise 11: measures what was guessed."""
import functools
import random

import torch

from exercises.checks import CONFIG, MODEL, TOKENIZER, measured, scenes, teach
from lab.claims import follow, make_priors
from lab.evaluate import decoded, graded
from lab.variants import unseen
from mini_dimple import confident, decode_ar

N, WIDEST = 60, 20  # scenes; points
SOME = scenes(N)


def wrong_colour():
    rng = random.Random(0)
    priors = [make_priors(ids, scene, CONFIG, TOKENIZER, SOME.board, rng)
              ["the last object's colour, wrong"]
              for ids, scene in zip(SOME.responses, SOME.split.scenes)]
    windows = torch.stack([prior.window for prior in priors])
    answers = decoded(MODEL, (*SOME[:N][:2], windows), confident(0.9)).tokens
    return [follow(answer, prior, TOKENIZER, SOME.board, CONFIG)[1]
            for answer, prior in zip(answers, priors)]


right = lambda way: graded(way, SOME).right
QUESTIONS = {  # name -> which captions are right, what to read in the answer
    "confident:0.9": (
        lambda: measured("confident:0.9", N).right,
        "What the picture leaves open is settled one choice at a time."),
    "confident:0.5": (
        lambda: measured("confident:0.5", N).right,
        "An object's two wordings are nearly as good. One just passes one half at several places, "
        "and not the same one everywhere: they mix. Deeper: python -m lab claims confident"),
    "maskgit:4": (
        lambda: measured("maskgit:4", N).right,
        "A count leaves all that is undecided to the last iterations, where the openings mix. "
        "Deeper: python -m lab rules"),
    "random_order:4": (
        lambda: measured("random_order:4", N).right,
        "Undecided words are spread over the iterations, so that they seldom meet. Deeper: python "
        "-m lab rules"),
    "naive prefix": (
        lambda: right(lambda rows: decoded(MODEL, SOME[rows], confident(0.9), unseen)),
        "Other keys and values than in training, but of 11 positions only: hardly a caption goes "
        "wrong. Deeper: python -m lab claims prefill"),
    "a wrong colour": (
        wrong_colour,
        "What is given is believed, the rest is seen. Deeper: python -m lab claims priors"),
    "AR weights, diffusion decoding": (
        lambda: measured("confident:0.9", N, "ar").right,
        "It has never seen a [MASK], nor what follows a token. The skill is not shared."),
    "diffusion weights, AR decoding": (
        lambda: right(lambda rows: decode_ar(MODEL, *SOME[rows][:2], 48)),
        "800 steps in full attention, and nearly all of what the first phase learnt is gone."),
}
share = functools.cache(lambda question: 100 * sum(QUESTIONS[question][0]()) / N)


def guesses(solution):
    for question in QUESTIONS:
        guess = solution.GUESS.get(question)
        teach(isinstance(guess, (tuple, list)) and len(guess) == 2,
              f"{question}: no guess yet. Write a range, (low, high), in percent.")
        low, high = guess
        teach(0 <= low <= high <= 100 and high - low <= WIDEST, f"{question}: {guess} must be a "
              f"range within 0 and 100 percent, at most {WIDEST} points wide.")
    lessons = [f"{question}: you guessed {low:g} to {high:g}%, measured {share(question):.0f}%. "
               f"{QUESTIONS[question][1]}" for question, (low, high) in solution.GUESS.items()
               if not low <= share(question) <= high]
    held = f"{len(QUESTIONS) - len(lessons)} of {len(QUESTIONS)} ranges hold what was measured."
    teach(not lessons, "\n".join([held, *lessons]))


CHECKS = [guesses]


def show(solution):
    yield f"{'':32s} you guessed    measured ({N} scenes)"
    for question, (low, high) in solution.GUESS.items():
        yield f"{question:32s} {low:>6.0f} to {f'{high:.0f}%':5s} {share(question):>11.0f}%"
    yield "Both fixed counts take 12 iterations. Why is the careful one the worse?"
