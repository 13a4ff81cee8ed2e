"""Checks exercise 3: the values, who sees whom, and the trained models running on the student's
attention."""
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F

from exercises.checks import count_right, exercise, scenes, shipped, teach, teach_tensor
from lab.evaluate import decoded
from mini_dimple import confident, decode_ar, full

__all__ = ["test_exercise"]
OFTEN = (" (masked_fill returns a copy, and wants a bool mask that is True where nothing may be "
         "seen.)")


def attend(solution, q, k, v, causal):
    """The student's attention, its form checked."""
    before = [x.clone() for x in (q, k, v)]
    lesson = ("F.scaled_dot_product_attention does it all: please write it yourself, from q, k "
              "and v.")
    refused = lambda *rest, **options: teach(False, lesson)
    with mock.patch.object(F, "scaled_dot_product_attention", refused):
        out = solution.attention(q, k, v, causal)
    teach_tensor(out, q.shape, torch.float32, "the output of attention")
    teach(all(map(torch.equal, before, (q, k, v))), "Your function writes into q, k or v, which "
          "the rest of the model still needs. Work on copies: q / 4, not q /= 4.")
    teach(out.isfinite().all(), f"With causal={causal} some outputs are not finite. Does every "
          "position see at least itself? Are the scores set to -inf BEFORE the softmax, and with "
          "masked_fill (0 * -inf is nan)?")
    return out


def mistakes(q, k, v, mask):
    """(output, lesson) of well-known mistakes; mask (T, T) is True where row i may see column j."""
    T, hd, bare = q.shape[2], q.shape[3], q @ k.transpose(-1, -2)
    scores = bare / hd ** 0.5
    after = lambda scores: scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v
    yield after(bare), ("The scores are not divided by sqrt(hd): with long vectors the softmax "
                        "becomes a hard choice.")
    heads = (q.shape[1] * hd) ** 0.5
    for wrong, name in ((hd, "hd"), (T ** 0.5, "sqrt(T)"), (heads, "sqrt(nh * hd)")):
        yield after(bare / wrong), (f"The scores are divided by {name}; it must be sqrt(hd), the "
                                    "square root of a head's width.")
    yield scores.masked_fill(~mask, -torch.inf).softmax(-2) @ v, (
        "The softmax runs over the queries; each query spreads its weight over the KEYS, the last "
        "dimension.")
    yield (scores.softmax(-1) * mask) @ v, (
        "You mask after the softmax: the weights of a row no longer sum to 1, as the future still "
        "takes its share. Set the scores to -inf BEFORE the softmax.")
    yield (scores * mask).softmax(-1) @ v, (
        "A score of 0 is no mask: exp(0) = 1, so the future still gets weight. Use -inf.")
    yield scores.masked_fill(~mask.T, -torch.inf).softmax(-1) @ v, (
        "The causal mask is upside down: a position sees what FOLLOWS it. Row i of the scores "
        "belongs to query i, and may keep columns 0 to i.")


def check_the_values(solution):
    wrong = {}
    for causal in (False, True):
        g = torch.Generator().manual_seed(1)
        q, k, v = (torch.randn(2, 3, 7, 16, generator=g) * 2 for _ in "qkv")
        right = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        mine = attend(solution, q, k, v, causal)
        wrong[causal] = not torch.allclose(mine, right, atol=1e-4)
        if wrong[causal]:
            other = F.scaled_dot_product_attention(q, k, v, is_causal=not causal)
            mask = torch.ones(7, 7).bool().tril(0 if causal else 7)
            for value, lesson in mistakes(q, k, v, mask):
                near = [torch.allclose(value, one, atol=1e-4) for one in (mine, right, other)]
                teach(near != [True, False, False], lesson)
    if any(wrong.values()):
        check_who_sees_whom(solution)
    for causal, is_wrong in wrong.items():
        teach(not is_wrong,
              f"With causal={causal} the values are not softmax(q k^T / sqrt(hd) + mask) v.")


def sees(solution, causal, T=6):
    """-> (T, T) bool: does the output at i change with what stands at j? By trying."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, T, 8, generator=g) for _ in "qkv")
    before, rows = attend(solution, q, k, v, causal), []
    for j in range(T):
        k2, v2 = k.clone(), v.clone()
        k2[:, :, j], v2[:, :, j] = k2[:, :, j] + 1, v2[:, :, j] - 1
        rows.append((attend(solution, q, k2, v2, causal) - before).abs().amax((0, 1, 3)) > 1e-6)
    return torch.stack(rows, 1)


def check_who_sees_whom(solution):
    seen, full, T = sees(solution, True), sees(solution, False), 6
    pairs = torch.ones(T, T, dtype=torch.bool)
    before, itself, after = pairs.tril(-1), torch.eye(T).bool(), pairs.triu(1)
    teach(not (seen.all() and not full.all()),
          "The two are swapped: causal=True must hide what follows, causal=False nothing.")
    teach(full.all(), "With causal=False some positions do not see each other. Full attention has "
          "no mask at all: a masked token looks at what follows it, too.")
    teach(not seen[after].any(),
          "With causal=True a position sees what follows it. In the AR phase that would be looking "
          "up the answer: the loss falls to nothing, and the model can caption nothing." + OFTEN)
    teach(seen[itself].all(),
          "With causal=True a position does not see itself. It must: the state at position i has "
          "to know token i to predict token i + 1. Mask strictly above the diagonal.")
    teach(seen[before].all(),
          "With causal=True a position does not see all that precedes it." + OFTEN)


@contextmanager
def plugged(solution, swapped=False):
    """Inside, the models run on the student's attention; `swapped`: causal where it was full, full
    where it was causal."""
    whole = F.scaled_dot_product_attention

    def plug(q, k, v, is_causal=False):
        if q.shape != k.shape:  # with a cache there are more keys than queries: not this exercise
            return whole(q, k, v, is_causal=is_causal)
        return solution.attention(q, k, v, is_causal != swapped)
    with mock.patch.object(F, "scaled_dot_product_attention", plug):
        yield


WAYS = {  # of captioning rows of scenes -> Decoded
    "diffusion phase, full attention": lambda rows: decoded(
        shipped()[0], scenes(64)[rows], confident(0.9), full),
    "AR phase, causal": lambda rows: decode_ar(shipped("ar")[0], *scenes(64)[rows][:2], 48)}


@torch.no_grad()
def check_that_the_trained_models_caption_with_it(solution):
    rows = slice(0, 8)
    for name, way in WAYS.items():
        before = way(rows).tokens
        with plugged(solution):
            after = way(rows).tokens
        teach(torch.equal(before, after),
              f"With your attention inside, the trained model ({name}) captions differently.")


@torch.no_grad()
def show(solution):
    """Who sees whom, and what the models do under each other's attention."""
    some, tokenizer, rows = scenes(64), shipped()[1], slice(0, 16)
    grids = [[" ".join("x" if one else "." for one in row) for row in sees(solution, causal, 4)]
             for causal in (True, False)]
    lines = ["Who sees whom, by trying your function (a row: what one position sees):",
             "causal=True    causal=False", *(f"{a}        {b}" for a, b in zip(*grids)),
             f"A right caption:\n    {some.split.texts[0]}"]
    for name, way in WAYS.items():
        with plugged(solution, swapped=True):
            out = way(rows)
        texts = [tokenizer.decode(out.response(b)) for b in range(16)]
        lines.append(f"The weights of the {name.split(',')[0]}, with your function the other way "
                     f"round, {count_right(texts)} of 16 right:\n    {texts[0]}")
    return "\n".join([*lines, "What has each phase learnt to rely on, that it does not find here?"])


test_exercise = exercise(check_the_values, check_who_sees_whom,
                         check_that_the_trained_models_caption_with_it, show=show)
