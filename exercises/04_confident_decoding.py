"""Exercise 4: confident decoding, from scratch.

Start from a window of [MASK]s (or with some tokens given). In each iteration run the model once.
Exclude [MASK] itself (its logit becomes -inf, before any softmax); for each masked position the
proposal is the most probable token, and its confidence is that token's probability. Commit every
masked position whose confidence is above the threshold; in an example where there is none, commit
the single most confident one. Committed and given tokens never change. Repeat until no mask is
left.

Each example of the batch decides for itself: it must come out as if it were decoded alone. With a
temperature above 0, the proposal is drawn from softmax(logits / temperature); its confidence is
still read before temperature.

Paper: confident decoding. Compare afterwards: `Step`, `confident` and `decode` in mini_dimple.py.
Check: python -m exercises 4
"""
import torch


@torch.no_grad()
def decode(model, images, prompt, window, threshold, temperature=0.0):
    """images (B, 3, H, H), prompt (B, P) ids, window (B, W) ids, some of them [MASK] -> tokens
    (B, W) ids, iterations (B,).

    The window itself stays as it is. iterations: a pass counts for an example only if it still had
    a mask before that pass. One pass: model(images, prompt, tokens, causal=False) -> logits
    (B, W, vocab), shifted already. Hint: the fallback is an argmax per row over masked positions
    only; torch.multinomial draws from probabilities (N, vocab)."""
    raise NotImplementedError
