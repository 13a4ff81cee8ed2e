"""Exercise 1, an answer."""
import torch

EPS = 1e-3


def draw_t(B):
    return EPS + (1 - EPS) * torch.rand(B)


def forward_process(response, t, mask_id):
    masked = torch.rand(response.shape) < t[:, None]  # (B, W) against (B, 1)
    return response.masked_fill(masked, mask_id), masked
