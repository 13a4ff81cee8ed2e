"""DAEDAL's first stage: a window that grows until the model sees its end.

DAEDAL (arXiv 2508.00819), section 3.2, Algorithm 1, lines 4 to 12: before anything is committed,
and while the mean probability of EOS at the last `tail` positions is below `sure`, append `by`
masks, up to a window of `longest` (Li-Jinsong/DAEDAL: 32, 0.5, 8 and 2048, from a window of 64).
Then confident decoding; the second stage, which inserts masks in the middle, is left out. The
examples of a batch share one length: where one grows, the others get EOS, as in the public code,
and see it, so that they may decode differently than alone. Give it a short window to start from.
"""
import torch


def rule(step, threshold=0.9, sure=0.5, by=8, tail=4, longest=48):
    window = step.commit(step.confidence > threshold)
    more = min(by, longest - window.shape[1])
    untouched = (step.masked | step.given).all(1) & step.masked.any(1)  # (B,)
    grows = untouched & (step.probs[:, -tail:, step.eos_id].mean(1) < sure)
    if "grown" in step.memory or more <= 0 or not grows.any():  # `any`: waits for a GPU
        step.memory["grown"] = True
        return window
    window = torch.where(grows[:, None], step.tokens, window)  # who grows commits nothing yet
    new = torch.where(grows, step.mask_id, step.eos_id)        # (B,)
    return torch.cat([window, new[:, None].expand(-1, more)], dim=1)
