"""Exercise 12: the exact posterior by hand, and two words at once.

All right captions of a scene are known, and how often each is used. So a perfect model is an
average: of the captions that agree with what is already committed, weighted by their odds. For a
picture of one object there are 16 of them: 4 openings, 2 prepositions, 2 wordings ("a small red
circle at the middle left", odds 0.55, or "at the middle left a small red circle", odds 0.45).

It is perfect, and still two words committed in one pass can make a caption that nobody would write:
each position draws from its own distribution, and knows nothing of the other's draw. Before you run
it: where the two wordings have different words in two positions, what is the probability that both
draws fit together? And if the second one is drawn a pass later?

Not part of Dimple: the toy set makes it possible. Why words that depend on each other should not
be committed at once is section 4 of the EB-Sampler paper (arXiv 2505.24857).
Compare afterwards: data/exact.py, which gets the same without listing the captions.
Check: python -m exercises 12
"""
import torch


def posterior(captions, odds, tokens, mask_id):
    """captions (N, W) ids, all right ones of a scene, no two alike; odds (N,), their sum is 1;
    tokens (W,) ids, a window: at [MASK] positions mask_id, elsewhere what is committed ->
    probs (W, mask_id + 1): of each position, the probability of each token. ([MASK] is the last
    id of the vocabulary.)

    Of a committed position all probability is on its token. At least one caption agrees with what
    is committed. Hint: F.one_hot, or scatter_add with captions.mT, (W, N)."""
    raise NotImplementedError


def survives(captions, odds, tokens, mask_id, i, j):
    """-> a number: the probability that two words, drawn in the same pass for the masked positions
    i and j, each from its own row of the posterior, are together in some caption that agrees with
    what is committed."""
    raise NotImplementedError
