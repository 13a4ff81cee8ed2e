"""Exercise 4, an answer."""
import torch


@torch.no_grad()
def decode(model, images, prompt, window, threshold, temperature=0.0):
    mask_id, tokens = model.config.mask_id, window.clone()
    iterations = torch.zeros(len(window), dtype=torch.long)
    while (tokens == mask_id).any():
        masked = tokens == mask_id
        logits = model(images, prompt, tokens, causal=False)
        logits[..., mask_id] = -torch.inf
        probs = logits.softmax(-1)  # (B, W, vocab)
        proposal = probs.argmax(-1)
        if temperature > 0:
            sharp = (logits / temperature).softmax(-1).flatten(0, 1)
            proposal = torch.multinomial(sharp, 1).view(tokens.shape)
        confidence = probs.gather(-1, proposal[..., None]).squeeze(-1)  # (B, W)
        confidence = confidence.masked_fill(~masked, -1)
        commit = confidence > threshold
        top = confidence.argmax(1, keepdim=True)  # (B, 1)
        best = torch.zeros_like(commit).scatter(1, top, True) & masked
        commit = torch.where(commit.any(1, keepdim=True), commit, best)
        tokens = torch.where(commit, proposal, tokens)
        iterations += masked.any(1)
    return tokens, iterations
