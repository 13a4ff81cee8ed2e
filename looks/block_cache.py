"""Keeps all that is left of the current block, the one with the first [MASK].

Fast-dLLM (arXiv 2505.22618, section 3.2; NVlabs/Fast-dLLM, llada/generate.py): as it stands the
prefix cache; with dual=1 the dual cache, which also keeps what is right of the block. A block
begins with a pass that computes everything; refresh=0 leaves that out, and is FreeCache (arXiv
2505.21467). For rules that finish block after block, as blocks:16.
What goes stale: the prefix and earlier blocks; with dual=1 later ones, too.
"""
import torch

from looks import keeping


def look(model, images, prompt, size=16, dual=0, refresh=1):
    def which(kept):
        W = kept.tokens.shape[1]
        block = torch.arange(W, device=kept.tokens.device) // size
        current, before = (torch.where(tokens == kept.mask_id, block, W).amin(1, keepdim=True)
                           for tokens in (kept.tokens, kept.before))  # (B, 1) each
        here = block == current if dual else block >= current
        begins = (current != before) & bool(refresh)
        return kept.scorers(here) | kept.states(here) | begins
    return keeping(model, images, prompt, which)
