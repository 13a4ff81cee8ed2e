"""Exercise 1: the forward process.

To train a diffusion language model, mask a response and let the model restore it: draw a level t
for each example, uniform between EPS and 1; then each token of that example's response becomes
[MASK] with probability t, each token on its own. The EOS padding at the end of a response is masked
like any other token: that is how the model learns where an answer ends.

Paper: the diffusion objective.
Compare afterwards: `draw_t` and `forward_process` in mini_dimple.py.
Check: python -m exercises 1
"""
import torch

EPS = 1e-3  # the smallest level; exercise 2 divides by t


def draw_t(B):
    """-> t (B,), float32: a level for each of B examples, each uniform between EPS and 1."""
    raise NotImplementedError


def forward_process(response, t, mask_id):
    """response (B, W) ids, t (B,) -> noisy (B, W) ids, masked (B, W) bool: True where a token
    became [MASK].

    The response itself stays as it is. Hint: torch.rand gives numbers that are below t with
    probability t. Mind the shapes when you compare (B, W) with (B,)."""
    raise NotImplementedError
