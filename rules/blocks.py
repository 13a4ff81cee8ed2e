"""Blocks from left to right, confident decoding inside the current one (semi-autoregressive).

An example's current block is the one with its first mask; what lies further right waits, however
sure it is. The blocks are those of LLaDA's sampler (arXiv 2502.09992; ML-GSAI/LLaDA, generate.py,
`block_length`) and of block diffusion (arXiv 2503.09573), the threshold inside is Fast-dLLM's
(arXiv 2505.22618, Algorithm 1, lines 7 and 8). Block diffusion is trained so that a block cannot
see what follows it; here, as in LLaDA, the model sees the masks on the right.
"""
import torch

from rules import top


def rule(step, size=16, threshold=0.9):
    W = step.masked.shape[1]
    block = torch.arange(W, device=step.tokens.device) // size
    current = torch.where(step.masked, block, W).amin(1, keepdim=True)  # (B, 1)
    waiting = step.masked & (block == current)
    return waiting & (step.confidence > threshold) | top(waiting, step.confidence, 1)
