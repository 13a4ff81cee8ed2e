"""After WINO: commit widely, verify, take back what fails.

Wide-In, Narrow-Out (arXiv 2507.18578), by its public code (Feng-Hong/WINO-DLLM, LLaDA/decoding.py
and configs/): commit above the low threshold `wide`; a token committed earlier is masked again if
its probability, given the others but not itself, is below `narrow`. The authors get that
probability in the same pass, from a second copy of the block in which no place sees its own token.
Here it takes a second pass: what the model gives less than `narrow` with the token in view is
doubtful, and a look with all that is doubtful masked decides. Of what fails, the worst are taken
back, fewer than were committed, so that it ends (the authors: than were committed in the iteration
before; they also commit 20 at most).
"""
import torch


def rule(step, wide=0.6, narrow=0.9):
    own = step.tokens[..., None]
    doubtful = ~step.masked & ~step.given & (step.probs.gather(-1, own)[..., 0] < narrow)
    window = step.commit(step.confidence > wide)
    probs = step.look(window.masked_fill(doubtful, step.mask_id)).softmax(-1)
    verdict = probs.gather(-1, own)[..., 0].masked_fill(~doubtful, torch.inf)  # (B, W)
    most = (window != step.tokens).sum(1, keepdim=True) - 1                    # (B, 1)
    worst = verdict.argsort(dim=1, stable=True).argsort(dim=1) < most
    return window.masked_fill(worst & (verdict < narrow), step.mask_id)
