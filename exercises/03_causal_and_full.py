"""Exercise 3: one transformer, two kinds of attention.

Dimple trains the same weights twice: first as an autoregressive (AR) model, where a position sees
itself and what precedes it, then as a diffusion model, where every position sees every other. All
that changes is a mask inside attention. Write it; the trained models have to caption with it:

    softmax(q k^T / sqrt(hd) + mask) v

Paper: autoregressive-then-diffusion training.
Compare afterwards: the argument `causal` of `Block.forward` in mini_dimple.py.
Check: python -m exercises 3
"""
import math

import torch


def attention(q, k, v, causal):
    """q, k, v (B, nh, T, hd) -> (B, nh, T, hd). `causal`: position i sees positions 0 to i only;
    else it sees all.

    Leave q, k and v as they are. Without F.scaled_dot_product_attention.
    Hint: torch.ones(T, T).tril() or triu, and masked_fill, which wants a bool mask and returns a
    copy."""
    raise NotImplementedError
