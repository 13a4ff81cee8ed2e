"""Looks (forward passes of decoding) that keep the states of all positions and compute only some of
them anew, one method per file: `def look(model, images, prompt, ...)`, as in `--look changed:0.9`.

All of them are `keeping`, and what a method is, is its `which`: Kept -> the positions whose states
are computed anew in this pass, bool (B, T), of [visual tokens][prompt][window]. All other positions
keep their keys and values, and the logits that they gave. The first pass computes everything. Under
full attention what is kept goes stale as tokens are committed, and decoding becomes approximate.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Kept(NamedTuple):
    """The state of such a look, as a `which` sees it."""
    tokens: torch.Tensor  # (B, W) ids of the window now
    before: torch.Tensor  # (B, W) ids of the window in the pass before
    inputs: torch.Tensor  # (B, W) ids that the kept states were computed from
    scores: torch.Tensor  # (B, T, vocab) the logits that the kept states gave
    cache: list           # each layer's keys and values (B, nh, T, hd)
    passes: int           # so far
    prefix: int           # V + P
    mask_id: int

    @property
    def masked(self):
        """(B, W) bool: what is a [MASK] now."""
        return self.tokens == self.mask_id

    @property
    def logits(self):
        """(B, W, vocab) of the window: position i + 1 is scored by the state at i (token shift)."""
        return self.scores[:, self.prefix - 1:-1]

    def scorers(self, where):
        """The states that score these tokens: (B, W) bool -> (B, T) bool."""
        return F.pad(where, (self.prefix - 1, 1))

    def states(self, where):
        """The states of these tokens: (B, W) bool -> (B, T) bool."""
        return F.pad(where, (self.prefix, 0))

    def every(self, n):
        """Whether this is a pass that computes everything anew: each n-th; 0: never."""
        return n > 0 and self.passes % n == 0


def positions(need):
    """(B, T) bool -> the positions named in each row (B, n). A row with fewer repeats its first, so
    that it computes nothing that it would not compute alone."""
    count = need.sum(1, keepdim=True)
    at = need.byte().argsort(dim=1, descending=True, stable=True)[:, :max(1, count.max().item())]
    return torch.where(torch.arange(at.shape[1], device=at.device) < count, at, at[:, :1])


@torch.no_grad()
def keeping(model, images, prompt, which, causal=False):
    """A look by a `which`. images (B, 3, H, H) uint8, prompt (B, P) ids; `causal`: as phase 1 reads
    them, where what stands left of a change stays exact. Raises ValueError as `Dimple.prefix`."""
    prefix = model.prefix(images, prompt)

    @torch.no_grad()
    def look(tokens, kept=None):
        x = torch.cat([prefix, model.embedding(tokens)], dim=1)
        if kept is None or kept.tokens.shape != tokens.shape:  # the window has grown or shrunk
            hidden, cache = model.transformer(x, causal)
            kept = Kept(tokens, tokens, tokens, model.head(hidden), cache, 1, prefix.shape[1],
                        model.config.mask_id)
            return kept.logits, kept
        kept = kept._replace(tokens=tokens)
        at = positions(which(kept))                                                # (B, n)
        hidden, cache = model.transformer(x.take_along_dim(at[..., None], 1), causal, kept.cache,
                                          at)
        scores = kept.scores.scatter(1, at[..., None].expand(-1, -1, kept.scores.shape[-1]),
                                     model.head(hidden))
        new = torch.zeros_like(scores[..., 0], dtype=torch.bool).scatter(1, at, True)
        inputs = torch.where(new[:, kept.prefix:], tokens, kept.inputs)
        if causal:  # right of a change all is out of date, even where it is not computed anew
            changed = (tokens != kept.inputs).cumsum(1) > 0
            inputs = inputs.masked_fill(changed & ~new[:, kept.prefix:], -1)
        kept = kept._replace(before=tokens, inputs=inputs, scores=scores, cache=cache,
                             passes=kept.passes + 1)
        return kept.logits, kept
    return look
