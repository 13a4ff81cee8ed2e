"""Checks exercise 9 by watching the windows of all passes, and by what comes out."""
import functools
import math
from unittest import mock

import torch

from exercises.checks import (count_right, exercise, scenes, shipped, teach, teach_tensor,
                              watched)

__all__ = ["test_exercise"]
N = 32


@functools.cache
def decoded(solution, b):
    """-> the tokens that the student's loop gives scene b, and the windows that its passes saw."""
    (model, _), some = shipped(), scenes(64)
    images, prompt, window = some[b:b + 1]
    endless = ("Your loop does not end. Is at least one token committed in each iteration, and "
               "[MASK] never proposed?")
    with watched(model, images, prompt, window.shape[1] + 1, endless) as seen:
        tokens = solution.decode_shrinking(model, images, prompt, window.clone(), 0.9)
    teach_tensor(tokens, window.shape, torch.long,
                 "tokens (pad them with EOS to the window that you were given)")
    return tokens[0], [p.window for p in seen[0]]


def check_where_the_window_is_cut(solution):
    config = shipped()[0].config
    for b in range(N):
        tokens, windows = decoded(solution, b)
        teach(not (tokens == config.mask_id).any(), "There are [MASK]s left in the tokens.")
        for before, after in zip(windows, [*windows[1:], None]):
            teach(not (before[:-1] == config.eos_id).any(), "A pass ran over a window in which an "
                  "EOS was committed, with more behind it: cut behind the FIRST committed EOS.")
            teach(after is None or len(after) <= len(before),
                  "The window has grown again from one pass to the next.")
            if after is not None and len(after) < len(before):
                teach(after[-1] == config.eos_id, "The window was cut where no EOS stands at its "
                      "new end. Either the EOS itself was cut off, and the model no longer sees "
                      "how long the answer is to be: cut behind it. Or you cut at an EOS that was "
                      "proposed, not committed: a proposal may still change.")
            if after is not None:
                kept = before[:len(after)] != config.mask_id
                teach(torch.equal(after[kept], before[:len(after)][kept]),
                      "A committed token has changed or moved when the window was cut.")


def check_an_earlier_end_later(solution):
    """A scripted model: it is sure of an EOS at 30 first, then of one at 12, then of all words.

    In its first pass it also thinks that there may be one at 5, with a probability of 0.6."""
    (model, _), (images, prompt, window), lengths = shipped(), scenes(64)[:1], []
    eos_id = model.config.eos_id

    def told(prefix, response, causal, past=None):
        lengths.append(response.shape[1])
        teach(len(lengths) < 99, "Your loop does not end.")
        logits = torch.zeros(1, response.shape[1], model.config.vocab_size)
        sure = {1: [30], 2: [12]}.get(len(lengths), range(12))
        for i in sure:
            if i < response.shape[1]:
                logits[0, i, eos_id if len(lengths) < 3 else 7] = 20.0
        if len(lengths) == 1:
            logits[0, 5, eos_id] = math.log(1.5 * (logits.shape[-1] - 2))  # the others: 0
        return logits, []
    with mock.patch.object(model, "logits", told):
        tokens = solution.decode_shrinking(model, images, prompt, window.clone(), 0.9)
    teach(lengths[1:2] != [6],
          "You cut at an EOS that was proposed, not committed: a proposal may still change.")
    teach(lengths[:3] == [48, 31, 13],
          "A model that commits an EOS at place 30 in its first pass and another at place 12 in "
          f"its second must see windows of 48, 31 and 13 tokens; yours sees {lengths[:3]}. Look "
          "for the first EOS after every pass: an earlier one may come later.")
    teach(tokens[0].tolist() == [7] * 12 + [eos_id] * 36,
          "In that case the response is the 12 words before the earlier EOS, and EOS after them.")


def check_it_pays_and_captions_stay_right(solution):
    (model, tokenizer), W, texts = shipped(), scenes(64).windows.shape[1], []
    for b in range(N):
        ids = decoded(solution, b)[0].tolist()
        end = ids.index(model.config.eos_id) if model.config.eos_id in ids else W
        teach(set(ids[end:]) <= {model.config.eos_id},
              "After the response's first EOS everything is EOS.")
        texts.append(tokenizer.decode(ids[:end]))
    right, (shrunk, whole) = count_right(texts), positions(solution)
    teach(right >= 0.95 * N,
          f"Only {right} of {N} captions are fully right, for example {texts[0]!r}.")
    teach(shrunk < 0.85 * whole, f"{shrunk} positions were computed, {shrunk / whole:.0%} of what "
          "the whole window takes: is it cut as soon as an EOS is committed?")


def positions(solution):
    """-> how many positions of the window were computed, and of a window that stays whole."""
    passes = [list(map(len, decoded(solution, b)[1])) for b in range(N)]
    return sum(map(sum, passes)), scenes(64).windows.shape[1] * sum(map(len, passes))


def show(solution):
    """The windows of a short and of a long caption, and what it saves in all."""
    tokenizer, eos_id, lines = shipped()[1], shipped()[0].config.eos_id, []
    for b in (4, 1):  # one object, four objects
        tokens, windows = decoded(solution, b)
        lines += [f"  {tokenizer.decode(tokens[tokens != eos_id].tolist())}",
                  f"      windows of {' '.join(str(len(window)) for window in windows)}"]
    shrunk, whole = positions(solution)
    return "\n".join(["The window in each pass, of two captions:", *lines,
                      f"Positions of the window computed for {N} captions: {shrunk} instead of "
                      f"{whole}, {1 - shrunk / whole:.0%} less.",
                      "Passes stay as many. What would have to differ for this to save time on a "
                      "GPU, in a batch?"])


test_exercise = exercise(check_where_the_window_is_cut, check_an_earlier_end_later,
                         check_it_pays_and_captions_stay_right, show=show)
