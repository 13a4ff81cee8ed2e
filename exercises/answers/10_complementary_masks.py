"""Exercise 10, an answer."""
import torch

EPS = 1e-3


def twins(images, prompt, response, masked, t, mask_id):
    images, prompt, response = (torch.cat([x, x]) for x in (images, prompt, response))
    masked, t = torch.cat([masked, ~masked]), torch.cat([t, (1 - t).clamp(min=EPS)])
    return images, prompt, response, response.masked_fill(masked, mask_id), masked, t
