"""Exercise 9: find the end early, and shrink the window.

The window of 48 tokens is longer than any answer (39 at most, with one EOS), and the rest of it is
EOS. The response ends at its first EOS, and every EOS after it is work for nothing. So: decode
confidently, and as soon as an EOS is committed, cut the window behind the first one and go on with
what is left. That EOS itself stays: the model sees by it how long the answer is to be.

One example at a time here, no prefilling. A proposal is no more than a guess.

Not part of Dimple: DAEDAL (arXiv 2508.00819) goes the other way and lets a short window grow.
Compare afterwards: `response_ends` in mini_dimple.py.
Check: python -m exercises 9
"""
import torch


@torch.no_grad()
def decode_shrinking(model, images, prompt, window, threshold):
    """images (1, 3, H, H), prompt (1, P) ids, window (1, W) of [MASK]s -> tokens (1, W): the
    response, EOS from its end on.

    One pass: model(images, prompt, tokens, causal=False) -> logits (1, n, vocab) for tokens (1, n),
    any n; set those of model.config.mask_id to -inf. Your loop of exercise 4 is a good start;
    model.config.eos_id is the EOS."""
    raise NotImplementedError
