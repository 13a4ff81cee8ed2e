"""Checks exercise 9 by watching the windows of all passes, and by what comes out."""
import functools
import math
from unittest import mock

import torch

from exercises.checks import ask, count_right, scenes, shipped, teach, teach_tensor, watched

MODEL, TOKENIZER = shipped()
SOME = scenes()
EOS = MODEL.config.eos_id
N, W = 32, MODEL.config.window
ENDLESS = ("Your loop does not end. Is at least one token committed in each iteration, and [MASK] "
           "never proposed?")


def tokens_of(solution, given):
    tokens = ask(solution.decode_shrinking, MODEL, *given, 0.9)
    teach_tensor(tokens, (1, W), torch.long,
                 "tokens (pad them with EOS to the window that you were given)")
    return tokens[0]


def where_the_window_is_cut(solution):
    """A scripted model: it is sure of an EOS at 30 first, then of one at 12, then of all words.

    In its first pass it also thinks that there may be one at 5, with a probability of 0.6."""
    seen = []

    def told(prefix, response, causal, past=None):
        seen.append(response.shape[1])
        teach(len(seen) < 99, ENDLESS)
        logits = torch.zeros(1, 48, MODEL.config.vocab_size)
        if len(seen) == 1:
            logits[0, 5, EOS] = math.log(1.5 * (logits.shape[-1] - 2))  # the others: 0
        sure, token = {1: (30, EOS), 2: (12, EOS)}.get(len(seen), (slice(12), 7))
        logits[0, sure, token] = 20.0
        return logits[:, :response.shape[1]], []
    with mock.patch.object(MODEL, "logits", told):
        tokens = tokens_of(solution, SOME[:1])
    why = {30: "The EOS itself was cut off: the model no longer sees how long the answer is to be.",
           6: "You cut at an EOS that was proposed, not committed: a proposal may still change.",
           31: "Look for the FIRST EOS after every pass: an earlier one may come later."}
    teach(seen[:3] == [48, 31, 13], "A model that commits an EOS at place 30 in its first pass and "
          "another at place 12 in its second must see windows of 48, 31 and 13 tokens; yours sees "
          f"{seen[:3]}. {why.get(seen[-1] if len(seen) < 2 else seen[1], '')}")
    teach(tokens.tolist() == [7] * 12 + [EOS] * 36, "Where an EOS was committed at place 30 and then "
          "at 12, the response is the 12 words before the earlier one, and EOS after them.")


@functools.cache
def decoded(solution, b):
    """-> the tokens that the reader's loop gives scene b, and how long the windows of its passes
    were."""
    given = SOME[b:b + 1]
    with watched(MODEL, *given[:2], W + 1, ENDLESS) as seen:
        tokens = tokens_of(solution, given).tolist()
    return tokens, [len(window) for window, _ in seen[0]]


def caption(tokens):
    return TOKENIZER.decode(tokens[:(tokens + [EOS]).index(EOS)])


def positions(solution):
    """-> how many positions of the window were computed, and of a window that stays whole."""
    lengths = [n for b in range(N) for n in decoded(solution, b)[1]]
    return sum(lengths), W * len(lengths)


def it_pays_and_captions_stay_right(solution):
    found = [decoded(solution, b)[0] for b in range(N)]
    teach(all(set(ids[ids.index(EOS):]) == {EOS} for ids in found if EOS in ids),
          "After the response's first EOS everything is EOS.")
    texts = list(map(caption, found))
    right, (shrunk, whole) = count_right(texts), positions(solution)
    teach(right >= 0.95 * N,
          f"Only {right} of {N} captions are fully right, for example {texts[0]!r}.")
    teach(shrunk < 0.85 * whole, f"{shrunk} positions were computed, {shrunk / whole:.0%} of what "
          "the whole window takes: is it cut as soon as an EOS is committed?")


CHECKS = [where_the_window_is_cut, it_pays_and_captions_stay_right]


def show(solution):
    """The windows of a short and of a long caption, and what it saves in all."""
    lines = []
    for tokens, lengths in (decoded(solution, b) for b in (4, 1)):  # one object, four objects
        lines += [f"  {caption(tokens)}", f"      windows of {' '.join(map(str, lengths))}"]
    shrunk, whole = positions(solution)
    return "\n".join(["The window in each pass, of two captions:", *lines,
                      f"Positions of the window computed for {N} captions: {shrunk} instead of "
                      f"{whole}, {1 - shrunk / whole:.0%} less.",
                      "Passes stay as many. What would have to differ for this to save time on a "
                      "GPU, in a batch?"])
