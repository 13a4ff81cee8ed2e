"""Checks exercise 3: the values, and the trained models running on the reader's attention."""
from unittest import mock

import torch
import torch.nn.functional as F

from exercises.checks import (MODEL, SOME, TOKENIZER, ask, compare, count_right, shipped, teach,
                              teach_tensor)
from lab.evaluate import decoded
from mini_dimple import confident, decode_ar, full

WHOLE = F.scaled_dot_product_attention


def the_values(solution):
    q, k, v = torch.randn(3, 2, 3, 7, 16, generator=torch.Generator().manual_seed(1)) * 2
    for causal in (False, True):
        mine = ask(solution.attention, q, k, v, causal)
        teach_tensor(mine, q.shape, torch.float32, "the output of attention")
        teach(mine.isfinite().all(), "Some outputs are not finite. Does every position see at "
              "least itself? (And 0 * -inf is nan: use masked_fill.)")
        mask = torch.ones(7, 7).bool().tril(0 if causal else 7)  # row i may see column j
        bare = q @ k.mT
        scores = bare / 4  # sqrt(hd)
        over_keys = lambda scores, mask: scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
        compare(mine, WHOLE(q, k, v, is_causal=causal), {
            "Yours does what it should with the other `causal`. (masked_fill returns a copy.)":
                WHOLE(q, k, v, is_causal=not causal),
            "The scores are not divided by sqrt(hd): the softmax becomes a hard choice.":
                over_keys(bare, mask),
            "The scores are divided by hd, not by its square root.": over_keys(bare / 16, mask),
            "The softmax runs over the queries. Each spreads its weight over the KEYS, dim -1.":
                scores.masked_fill(~mask, -torch.inf).softmax(-2) @ v,
            "You mask after the softmax, so that weights no longer sum to 1. Use -inf BEFORE it.":
                (scores.softmax(-1) * mask) @ v,
            "A score of 0 is no mask: exp(0) = 1, so the future still gets weight. Use -inf.":
                (scores * mask).softmax(-1) @ v,
            "The causal mask is upside down. Row i of the scores, query i, keeps columns 0 to i.":
                over_keys(scores, mask.mT),
            "A position sees the next one, too. In training that is to look up the answer.":
                over_keys(scores, mask | torch.ones(7, 7).bool().tril(1))},
            f"With causal={causal} the values are not softmax(q k^T / sqrt(hd) + mask) v. ", 1e-4)


def plugged(solution, swapped=False):
    """-> a context in which the models run on the reader's attention; `swapped`: causal where it
    was full, full where it was causal."""
    def plug(q, k, v, attn_mask=None, is_causal=False):
        if q.shape != k.shape:  # with a cache there are more keys than queries: not this exercise
            return WHOLE(q, k, v, is_causal=is_causal)
        return solution.attention(q, k, v, is_causal != swapped)
    return mock.patch.object(F, "scaled_dot_product_attention", plug)


WAYS = {  # of captioning rows of scenes -> Decoded
    "diffusion phase, full attention": lambda rows: decoded(
        MODEL, SOME[rows], confident(0.9), full),
    "AR phase, causal": lambda rows: decode_ar(shipped("ar")[0], *SOME[rows][:2], 48)}


def the_trained_models_caption_with_it(solution):
    for name, way in WAYS.items():
        before = way(slice(8)).tokens
        with plugged(solution):
            teach(torch.equal(before, way(slice(8)).tokens),
                  f"With your attention inside, the trained model ({name}) captions differently.")


CHECKS = [the_values, the_trained_models_caption_with_it]


def sees(solution, causal, T=4):
    """Does the output at i depend on the value at j? -> a row of words for each i."""
    q, k, v = torch.randn(3, 1, 2, T, 8, generator=torch.Generator().manual_seed(0))
    outputs = lambda v: solution.attention(q, k, v, causal).sum((0, 1, 3))  # (T,)
    depends = torch.autograd.functional.jacobian(outputs, v).abs().sum((1, 2, 4)) > 0  # (T, T)
    return [" ".join("x" if one else "." for one in row) for row in depends]


def show(solution):
    """Who sees whom, and what the models do under each other's attention."""
    yield "Who sees whom, by trying your function (a row: what one position sees):"
    yield "causal=True    causal=False"
    yield from map("        ".join, zip(sees(solution, True), sees(solution, False)))
    yield f"A right caption:\n    {SOME.split.texts[0]}"
    for name, way in WAYS.items():
        with plugged(solution, swapped=True), torch.no_grad():
            out = way(slice(16))
        texts = [TOKENIZER.decode(out.response(b)) for b in range(16)]
        yield (f"The weights of the {name.split(',')[0]}, with your function the other way round, "
               f"{count_right(texts)} of 16 right:\n    {texts[0]}")
    yield "What has each phase learnt to rely on, that it does not find here?"
