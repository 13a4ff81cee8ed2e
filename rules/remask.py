"""Confident decoding that changes its mind: commit above the threshold, and take back what has
become improbable since.

After ReMDM (arXiv 2503.00307) in spirit; not part of Dimple. What it goes by, a committed token's
own probability, was never trained: the loss scores masked positions alone."""


def rule(step, threshold=0.7):
    # (B, W) what the model now thinks of each token
    own = step.probs.gather(-1, step.tokens[..., None]).squeeze(-1)
    window = step.commit(step.confidence > threshold)
    return window.masked_fill(~step.masked & (own < 0.1), step.mask_id)
