"""No EOS at the first k places, confident decoding otherwise: a response of at least k tokens.

No paper's rule; it is what the hook on the logits in Dimple's public code is for (yu-rp/Dimple,
`generation_logits_hook_func`). LLaDA's sampler can forbid EOS everywhere (ML-GSAI/LLaDA,
generate.py, `logits_eos_inf`). A given EOS stays.
"""
import torch


def rule(step, k=8, threshold=0.9):
    step.logits[:, :k, step.eos_id] = -torch.inf
    step.rescore(step.logits)
    return step.confidence > threshold
