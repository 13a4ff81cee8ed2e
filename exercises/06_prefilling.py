"""Exercise 6: prefilling, and what a naive prefix gets wrong.

In each iteration the model runs over [visual tokens][prompt][window], though only the window
changes. Prefilling runs all of it once, keeps the keys and values of what precedes the last prompt
token, and from then on feeds only [last prompt token][window].

Why is the last prompt token fed again? Because of the shift: it predicts the first response token.
Is it exact? No: with full attention, keys and values of the prefix depend on the window, and what
is kept saw it when it was all [MASK]. It is right in the pass in which it was made, and goes stale
as tokens are committed.
A naive prefix, run without any window in view, is another thing: off from the first pass on, unless
the model was trained so (train.py --prefix-mask). How much either costs depends on the model: look
at the probabilities, not only at the captions.

Paper: prefilling. Compare afterwards: `prefilled` and `Dimple.score` in mini_dimple.py.
Check: python -m pytest exercises/06_prefilling.py -s   (-s shows how far off stale and naive are)
"""
import torch


def first_pass(model, prefix, window):
    """prefix (B, V + P, D) embeddings, window (B, W) ids -> logits (B, W, vocab) of the window,
    shifted; past.

    `past` is a list with one (keys, values) for each layer, each (B, nh, V + P - 1, hd): all of the
    prefix but the last prompt token. Pieces: model.embedding(ids); model.transformer(x, causal) ->
    hidden (B, T, D), cache, where cache is a list of (keys, values), each (B, nh, T, hd), of all
    positions; model.head(hidden)."""
    raise NotImplementedError


def later_pass(model, last, tokens, past):
    """last (B, 1, D): the prefix's last embedding; tokens (B, W) ids; past as above -> logits
    (B, W, vocab), shifted.

    Piece: model.transformer(x, causal, past) lets x see the past as well, and counts its positions
    on from there; with a past and several positions, `causal` has no effect."""
    raise NotImplementedError


def naive_past(model, prefix):
    """prefix (B, V + P, D) -> past in the same form, from what precedes the last prompt token
    alone, in full attention."""
    raise NotImplementedError


from exercises.checks.prefilling import *  # the checker; keep this line last
