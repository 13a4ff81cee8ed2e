"""Exercise 6: prefilling, and a prefix that ruins the captions.

In each iteration the model runs over [visual tokens][prompt][window], though only the window
changes. Prefilling runs all of it once, keeps the keys and values of what precedes the last prompt
token, and from then on feeds only [last prompt token][window].

Why is the last prompt token fed again? Because of the shift: it predicts the first response token.
Is it exact? No: with full attention, keys and values of the prefix depend on the window, and what
is kept saw it when it was all [MASK]. It is right in the pass in which it was made, and goes stale
as tokens are committed.

There are other ways to get such a prefix. One may run it before there is any window. And an engine
that serves AR models has it already, made under the causal mask. Write both; the checker decodes
with each of them. One ruins four captions of five. Then say why.

Paper: prefilling. Compare afterwards: `prefilled` and `Dimple.logits` in mini_dimple.py.
Check: python -m exercises 6
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


def lone_past(model, prefix, causal):
    """prefix (B, V + P, D) -> past in the same form, from what precedes the last prompt token
    alone: no window in view. `causal`: under the causal mask, else in full attention."""
    raise NotImplementedError


# Why are so many captions wrong with that prefix? Run the checker first, for its table.
#   "a"  what is kept goes stale as tokens are committed
#   "b"  what is kept has never seen the window
#   "c"  parts of the picture have not seen the parts that follow
WHY = None
