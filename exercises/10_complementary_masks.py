"""Exercise 10: complementary masks.

In one pass of the diffusion loss only the masked tokens teach; at small t that is almost none. So
let each example enter twice: once with its mask, once with the complement. Then every token of
every response is predicted exactly once. (Two masks drawn on their own leave a quarter of the
tokens out, and predict another quarter twice.)

What does the twin's loss weigh? The paper's objective divides by the level t, the PROBABILITY with
which a token was masked (the argument t, not a counted share). The complement's is 1 - t; keep it
at least EPS, as t can be 1.

Paper: not in its runs ("dual" masking is in the public code; LaViDa, arXiv 2505.16839, calls it
complementary). Compare afterwards: `variant_loss` in lab/variants.py.
Whether it helps: python -m lab claims loss
Check: python -m exercises 10
"""
import torch

EPS = 1e-3


def twins(images, prompt, response, masked, t, mask_id):
    """images (B, 3, H, H), prompt (B, P), response (B, W) ids, masked (B, W) bool, t (B,) -> a
    batch twice as long, a tuple images (2B, 3, H, H), prompt (2B, P), response (2B, W), noisy
    (2B, W), masked (2B, W), t (2B,), its rows in any order."""
    raise NotImplementedError
