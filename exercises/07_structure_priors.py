"""Exercise 7: structure priors and infilling.

An AR model can be told how its answer begins, and no more. A diffusion model takes any tokens of
its window as given: a format, a fact, a length; decoding fills in the rest. Templates are text: `_`
is one free token, `<end>` says that the response ends here, everything else is given. For example

    "here we find a _ _ _ in"             the wording is given; what follows is free, too
    "there is just _ _ _ _ at"            a later word can settle an earlier one: the first object
                                          is told as "a large red circle at the top left"
    "i can see at"                        and here as "at the top left a large red circle"
    "i can see a _ _ _ at the _ _<end>"   one object, and nothing after it

Mind the tokens: a word's token includes the space before it (" red" is one token), so the space
before a `_` belongs to the free token, and must not become a token of its own.

Paper: structure priors.
Compare afterwards: `make_window` in sample.py, and the argument `window` of `decode` in
mini_dimple.py.
Check: python -m exercises 7
"""
import torch

from mini_dimple import decode, prefilled


def make_window(template, length, tokenizer):
    """-> window (1, length) of ids: given tokens, tokenizer.mask_id where a token is free.

    What follows the template is free, or tokenizer.eos_id after an `<end>`. Hint: re.split with
    parentheses keeps what it splits at."""
    raise NotImplementedError


def infill(model, tokenizer, images, prompt, template):
    """images (B, 3, H, H), prompt (B, P) ids -> list of B strings: the responses that fit the
    template, windows of model.config.window.

    decode as imported above, with its usual rule. Hint: it wants a window for each picture
    (expand); decode(prefilled(model, images, prompt), windows, model.config) -> out with
    out.response(b), ids without the EOS; tokenizer.decode(ids)."""
    raise NotImplementedError
