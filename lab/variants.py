"""What neighbours of the paper add to training, measured by `python -m lab claims`."""
import torch

from mini_dimple import EPS, Dimple, draw_t, forward_process, token_nll, weigh


class PrefixMasked(Dimple):
    """LaViDa's prefix mask: in phase 2, what precedes the last prompt token sees itself alone. Its
    keys and values then never go stale: prefilling is exact. (The last prompt token scores the
    first of the window, and sees all.)"""

    def logits(self, prefix, response, causal, past=None):
        """As `Dimple.logits`."""
        if not causal and past is None:
            _, past = self.transformer(prefix[:, :-1], causal)
            prefix = prefix[:, -1:]
        return super().logits(prefix, response, causal, past)


@torch.no_grad()
def unseen(model, images, prompt):
    """A look: prefilling with a prefix that never saw the window, in the first pass either. Shapes
    and errors as `mini_dimple.prefilled`."""
    prefix = model.prefix(images, prompt)
    _, past = model.transformer(prefix[:, :-1], causal=False)
    return lambda tokens, state=None: (model.logits(prefix[:, -1:], tokens, False, past)[0], None)


def complementary_loss(model, images, prompt, response, weighting="flat", generator=None):
    """`diffusion_loss` with each example twice, with a mask and with its complement, so that every
    response token is supervised once ("dual" in Dimple's public code, LaViDa's complementary
    masking). Shapes, unit and errors as there."""
    mask_id = model.config.mask_id
    t = draw_t(len(response), response.device, generator)
    noisy, masked = forward_process(response, t, mask_id, generator)
    noisy = torch.cat([noisy, response.masked_fill(~masked, mask_id)])
    masked, t = torch.cat([masked, ~masked]), torch.cat([t, (1 - t).clamp(min=EPS)])
    images, prompt, response = torch.cat([images] * 2), prompt.repeat(2, 1), response.repeat(2, 1)
    nll = token_nll(model(images, prompt, noisy, causal=False), response)
    return weigh(nll, masked, t, weighting)
