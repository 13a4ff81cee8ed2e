"""Exercise 15: one rule for three models: the perfect one, a trained one, an unsure one.

The board grades a rule on the exact posterior (what it loses there is its own fault), on the
trained weights, and on weaker ones, of the middle of their training (`weights/weak.pt`).
`confident:0.9` is nearly always right on the first two, and four times of five on the weak one, in
11 to 12 passes. Beat it everywhere, on the checker's 64 scenes, each captioned greedily and with
sampled words (temperature 1), 128 captions for each model:

- exact and trained: as many right, but for two at most;
- weak: at least four more right;
- all three: at most 6.1 passes a caption, on average (a look of the rule's own is one).

One rule in rules/, middle_out, does all this: do not look yet. What does the weak model do wrong?
`python -m lab rules --rule FILE` counts the mistakes.

Not part of Dimple: ReMDM (arXiv 2503.00307) and WINO (arXiv 2507.18578) take tokens back.
Compare afterwards: rules/middle_out.py, rules/remask.py, rules/remdm.py, rules/wino.py.
Check: python -m exercises 15
Board: python -m lab rules --rule exercises/mine/15_three_models.py
"""
import torch


def rule(step):
    """step: a `mini_dimple.Step` -> positions to commit, bool (B, W), or the next window, ids
    (B, W), where step.mask_id takes a token back.

    step.commit(positions) is the next window with the proposals in these positions. step.probs
    (B, W, vocab) has the committed positions, too: what the model thinks, now, of what stands
    there. step.memory is a dict that is empty at the start of a decoding and lasts as long as it
    does: a rule that takes the same token back for ever does not end."""
    raise NotImplementedError
