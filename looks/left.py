"""Keeps all that stands left of the first change: of the AR phase, where it is exact.

The AR weights with a KV cache, as a look, for weights of phase 1 (`weights/ar_phase.pt`; those of
phase 2 read from left to right caption badly). A [MASK] is not computed, nor what follows the end:
only the first [MASK]'s logits mean something, and those of the tokens before it.
Nothing goes stale.
"""
from looks import keeping


def look(model, images, prompt):
    def which(kept):
        new = (kept.tokens != kept.inputs).cumsum(1) > 0
        eos = (kept.tokens == model.config.eos_id).long()
        ended = eos.cumsum(1) - eos > 0
        return kept.states(new & ~kept.masked & ~ended)
    return keeping(model, images, prompt, which, causal=True)
