"""ReMDM-cap: any committed token may be taken back, any number of times.

ReMDM (arXiv 2503.00307), Algorithm 1 and equation (6), with the max-capped schedule of section 4.1.
alpha is the share not masked, here rising linearly to 1, from alpha_t to alpha_s in an iteration.
In it a committed token is masked again with probability sigma = min(eta, (1 - alpha_s) / alpha_t),
and as many more masks are committed, so that alpha rises as without remasking (Theorem 3.1). eta is
the paper's for few steps (section 5.1.1); its loop, for many steps, is left out. Different here:
the tokens are the step's proposals, which are drawn only with a temperature (the paper: 1, top-p
0.9), and an example is finished as soon as it has no mask.
"""
import torch


def rule(step, steps=32, eta=0.04):
    alpha_t, alpha_s = step.iteration / steps, min(1, (step.iteration + 1) / steps)
    sigma = min(eta, (1 - alpha_s) / alpha_t) if alpha_t else eta  # at 0 nothing is committed
    stay = (1 - alpha_s - sigma * alpha_t) / (1 - alpha_t)         # a mask's chance to stay one
    shape, device = step.tokens.shape, step.tokens.device
    chance = torch.rand(shape, generator=step.generator, device=device)
    window = torch.where(step.masked & (chance >= stay), step.proposal, step.tokens)
    return window.masked_fill(~step.masked & (chance < sigma), step.mask_id)
