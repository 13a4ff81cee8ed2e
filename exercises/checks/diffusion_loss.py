"""Checks exercise 2: the value, against the right one and against those of well-known mistakes."""
import torch

from exercises.checks import MASK, MODEL, SOME, ask, compare, shipped, teach, teach_tensor
from mini_dimple import forward_process, token_nll


def case(levels):
    """-> the arguments of diffusion_loss after the model, for the first scenes, one a level."""
    t, response = torch.tensor(levels), SOME.responses[:len(levels)]
    masked = torch.rand(response.shape, generator=torch.Generator().manual_seed(0)) < t[:, None]
    return *SOME[:len(t)][:2], response, masked, t


@torch.no_grad()
def losses(images, prompt, response, masked, t):
    """-> the right loss; what well-known mistakes make of it, by their lessons."""
    W, noisy = response.shape[1], response.masked_fill(masked, MASK)
    nll = lambda seen, causal=False: token_nll(MODEL(images, prompt, seen, causal), response)
    loss = lambda nll: ((nll * masked).sum(1) / t).mean() / W
    right = nll(noisy)
    kept = (right * masked).sum(1)  # (B,)
    x = torch.cat([MODEL.prefix(images, prompt), MODEL.embedding(noisy)], 1)
    own_place = MODEL.head(MODEL.transformer(x, False)[0][:, -W:])  # not shifted
    return loss(right), {
        "The shift is missing: the state at position i predicts token i + 1, in both phases.":
            loss(token_nll(own_place, response)),
        "The shift goes the wrong way. The logits for a token stand one position BEFORE it.":
            loss(token_nll(own_place.roll(-1, 1), response)),
        "The diffusion phase has full attention: a masked token may look at what follows it.":
            loss(nll(noisy, True)),
        "The model sees the answer itself. Give it [MASK] where `masked` is True.":
            loss(nll(response)),
        "Only masked tokens count: the others stand in the input, and to predict them is to copy.":
            (right.sum(1) / t).mean() / W,
        "That is each example's mean over its masked tokens, as in the public code.":
            (kept / masked.sum(1).clamp(min=1)).mean(),
        "That is the mean over all masked tokens (train.py --variant flat), without 1/t.":
            kept.sum() / masked.sum(),
        "The weight 1/t is missing, which makes every level count alike.": kept.mean() / W,
        "t was broadcast against the whole batch, (B, 1) against (B,). Sum without keepdim.":
            (kept[:, None] / t).mean() / W,
        "Divide by the window length W, too, so that the loss is per token.": (kept / t).mean(),
        "The sign is wrong: the loss is MINUS the log-probability.": -loss(right)}


def check_loss(solution, given, said=""):
    loss = ask(solution.diffusion_loss, MODEL, *given)
    teach_tensor(loss, (), torch.float32, "the loss")
    right, mistakes = losses(*given)
    said += f"Your loss is {loss:.4f}, the right one is {right:.4f} nats. "
    compare(loss, right, mistakes, said, 1e-4 * right.item())
    return loss


def the_value(solution):
    for levels in [0.2, 0.5, 0.9, 1.0], [0.3, 0.6, 0.6, 0.8, 0.1]:
        check_loss(solution, case(levels))


def it_can_be_trained_with(solution):
    loss = check_loss(solution, case([0.5, 0.9]))
    weights = [MODEL.head.weight, MODEL.blocks[0].qkv.weight, MODEL.vit.embed.weight]
    teach(loss.requires_grad and None not in torch.autograd.grad(loss, weights, allow_unused=True),
          "No gradient flows from your loss back through the whole model. Is there an .item(), "
          ".detach(), torch.no_grad() or new tensor on the way?")


def an_example_without_masks(solution):
    *given, masked, t = case([0.5, 0.001])
    masked[1] = False
    check_loss(solution, (*given, masked, t), "At small t an example may have no masked token. It "
               "counts 0, and still is one of the examples of the mean. ")


CHECKS = [the_value, it_can_be_trained_with, an_example_without_masks]


@torch.no_grad()
def show(solution):
    """The loss of three models by the level, beside the least possible."""
    rows = torch.arange(32)
    (images, prompt, _), response, exact = SOME[rows], SOME.responses[rows], SOME.exact()(rows)
    yield "Your loss on 32 held-out captions, in nats, at one level t each:"
    yield "    t   trained weights   weaker weights   AR weights   least possible"
    for level in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        t = torch.full((len(rows),), level)
        noisy, masked = forward_process(response, t, MASK, torch.Generator().manual_seed(0))
        found = [solution.diffusion_loss(shipped(name)[0], images, prompt, response, masked, t)
                 for name in ("diffusion", "weak", "ar")]
        least = (token_nll(exact(noisy)[0], response) * masked).sum() / level / masked.numel()
        yield "{:5.1f} {:17.4f} {:14.4f} {:12.4f} {:16.4f}".format(level, *found, least)
    yield "Why is the least possible not 0, and why does it grow with t?"
    yield "Why are the AR weights so bad at it, which caption 98% right from left to right?"
