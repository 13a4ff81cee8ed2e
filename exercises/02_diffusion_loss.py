"""Exercise 2: the diffusion loss, and its shift.

The model sees image, prompt and the noisy response, all at once, and predicts the masked tokens.
The paper's objective for one example is

    (1 / t) * (sum over its masked tokens of -log p(right token | noisy response)) / W,

with W the length of the response window; the loss is the mean over the examples of the batch. About
t * W tokens are masked; 1/t makes up for that, so that every level counts alike and the loss bounds
the likelihood. An example with no masked token counts 0.

The sequence is [visual tokens][prompt][noisy response], V + P + W positions.
*Token shift.* In the AR phase the state at position i learnt to predict token i + 1, and Dimple
keeps that in the diffusion phase: the logits for the token at position j are read from the hidden
state at position j - 1, although position j itself (often a [MASK]) is in the input. The first
response token is predicted at the last prompt token.

Paper: the diffusion objective, 1/t weighting.
Compare afterwards: `Dimple.logits`, `token_nll` and `diffusion_loss` in mini_dimple.py.
Check: python -m exercises 2
"""
import torch
import torch.nn.functional as F


def diffusion_loss(model, images, prompt, response, masked, t):
    """images (B, 3, H, H), prompt (B, P) ids, response (B, W) ids, masked (B, W) bool, t (B,) ->
    scalar tensor, float32, nats.

    The pieces of the model, V visual tokens, D wide:
      model.prefix(images, prompt)   embeddings of [visual tokens][prompt], (B, V + P, D)
      model.embedding(ids)           embeddings of ids (B, n) -> (B, n, D); join the two with
                                     torch.cat along dim 1
      model.transformer(x, causal)   x (B, T, D) -> a tuple: hidden states (B, T, D), and a cache
                                     that you do not need here
      model.head(hidden)             logits over the vocabulary
      model.config.mask_id           the id of [MASK]
    (model.logits and model(...) shift for you: they pass, too, and teach you nothing.)
    Hint: F.cross_entropy(..., reduction="none") wants (N, vocab) and (N,)."""
    raise NotImplementedError
