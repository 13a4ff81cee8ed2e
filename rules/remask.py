"""Confident decoding that changes its mind: commit above the threshold, and take back what has become improbable since.

After ReMDM (arXiv 2503.00307) in spirit; not part of Dimple. Pays at thresholds that are too bold without it."""


def rule(step, threshold=0.7):
    own = step.probs.gather(-1, step.tokens[..., None]).squeeze(-1)  # (B, W) what the model now thinks of each token
    return step.confidence > threshold, own < 0.1
