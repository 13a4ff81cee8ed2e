"""Checks exercise 9 by watching the windows of all passes, and by what comes out."""
import functools
import math

import torch

from exercises.checks import (CONFIG, EOS, SOME, TOKENIZER, Watched, ask, count_right, teach,
                              teach_tensor)

N, W = 32, CONFIG.window


def tokens_of(solution, model, given):
    tokens = ask(solution.decode_shrinking, model, *given, 0.9)
    teach_tensor(tokens, (1, W), torch.long,
                 "tokens (pad them with EOS to the window that you were given)")
    return tokens[0].tolist()


def where_the_window_is_cut(solution):
    """A scripted model: it is sure of an EOS at 30 first (with one of 0.6 at 5), then of one at
    12, then of all words."""
    seen = []

    def model(images, prompt, tokens, causal):
        seen.append(tokens.shape[1])
        logits = torch.zeros(1, W, CONFIG.vocab_size)
        if len(seen) == 1:
            logits[0, 5, EOS] = math.log(1.5 * (logits.shape[-1] - 2))  # the others: 0
        place, token = {1: (30, EOS), 2: (12, EOS)}.get(len(seen), (slice(12), 7))
        logits[0, place, token] = 20.0
        return logits[:, :tokens.shape[1]]
    model.config = CONFIG
    tokens = tokens_of(solution, model, SOME[:1])
    teach(seen[:3] == [48, 31, 13] and tokens == [7] * 12 + [EOS] * 36,
          "A model that commits an EOS at place 30 in its first pass and another at place 12 in "
          "its second must see windows of 48, 31 and 13 tokens and say 12 words; yours sees "
          f"{seen[:3]}. Cut behind the FIRST EOS that is committed (a proposal may still change), "
          "after every pass; the EOS itself stays, as it tells the model how long the answer is.")


@functools.cache
def decoded(solution, b):
    """-> the tokens that the reader's loop gives scene b, and how long the windows of its passes
    were."""
    model = Watched()
    tokens = tokens_of(solution, model, SOME[b:b + 1])
    return tokens, [window.shape[1] for window in model.windows]


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
    yield "The window in each pass, of two captions:"
    for tokens, lengths in (decoded(solution, b) for b in (4, 1)):  # one object, four objects
        yield f"  {caption(tokens)}"
        yield f"      windows of {' '.join(map(str, lengths))}"
    shrunk, whole = positions(solution)
    yield (f"Positions of the window computed for {N} captions: {shrunk} instead of {whole}, "
           f"{1 - shrunk / whole:.0%} less.")
    yield ("Passes stay as many. What would have to differ for this to save time on a GPU, in a "
           "batch?")
