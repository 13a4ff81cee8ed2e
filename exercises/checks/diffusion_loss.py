"""Checks exercise 2: the value, against the right one and against those of well-known mistakes."""
import torch

from exercises.checks import exercise, scenes, shipped, teach, teach_tensor
from mini_dimple import forward_process, token_nll

__all__ = ["test_exercise"]


def case(levels, seed=0):
    """-> the arguments of diffusion_loss for the first scenes, one for each level."""
    (model, _), t = shipped(), torch.tensor(levels)
    images, prompt, _ = scenes(64)[:len(t)]
    response = scenes(64).responses[:len(t)].clone()
    masked = torch.rand(response.shape, generator=torch.Generator().manual_seed(seed)) < t[:, None]
    return model, images, prompt, response, masked, t


def nll(model, images, prompt, response, seen, causal=False):
    """-log p (B, W) of each response token when the model sees `seen`."""
    return token_nll(model(images, prompt, seen, causal), response)


@torch.no_grad()
def lessons(model, images, prompt, response, masked, t):
    """-> the right value; (value, lesson) of each mistake."""
    W, noisy = response.shape[1], response.masked_fill(masked, model.config.mask_id)
    given = model, images, prompt, response
    over = lambda nll: ((nll * masked).sum(1) / t).mean().item() / W
    right = nll(*given, noisy)
    kept = (right * masked).sum(1)
    unshifted = ("The shift is missing: you read each token's logits at its own position. The "
                 "state at position i predicts token i + 1, in both phases; the first response "
                 "token is predicted at the last prompt token.")
    first = ("All is right but the first response token: it is predicted at the last prompt token, "
             "position V + P - 1 of the sequence. ")
    all_tokens = ("You averaged over all tokens of the response. Only masked tokens count: the "
                  "others stand in the input, to predict them is to copy.")
    x = torch.cat([model.prefix(images, prompt), model.embedding(noisy)], 1)
    logits = model.head(model.transformer(x, False)[0][:, -W:])  # not shifted
    own_place, without_first = token_nll(logits, response), (right * masked)[:, 1:].sum(1)
    masked_prompt = torch.full_like(prompt, model.config.mask_id)
    return over(right), [
        (over(own_place), unshifted),
        (own_place[masked].mean().item(), unshifted + " (And it is not the mean over all masked "
         "tokens, but the paper's weighting.)"),
        (over(token_nll(logits.roll(-1, 1), response)),
         "The shift goes the wrong way: the logits for a token stand one position BEFORE it."),
        (over(token_nll(logits.roll(1, 1), response)), first + "Yours is read from the end of the "
         "window, where rolling the logits put it."),
        ((without_first / t).mean().item() / W, first + "Yours is left out."),
        ((without_first / t).mean().item() / (W - 1), first + "Yours is left out."),
        (over(nll(*given, noisy, causal=True)), "You ran the transformer under the causal mask. "
         "The diffusion phase has full attention: a masked token may look at what follows it."),
        (over(nll(*given, response)), "The model sees the response without its masks, the answer "
         "itself: give it [MASK] where `masked` is True."),
        (over(nll(model, images, masked_prompt, response, noisy)), "You masked the prompt. Image "
         "and prompt are never masked: they are what the response is conditioned on."),
        ((right.sum(1) / t).mean().item() / W, all_tokens),
        (right.mean().item(), all_tokens),
        ((kept / masked.sum(1).clamp(min=1)).mean().item(), "You took the mean over each example's "
         "masked tokens. That is the public code's variant; the paper divides by t and by W (their "
         "number is about t * W, but not exactly)."),
        ((kept.sum() / masked.sum()).item(), "You took the mean over all masked tokens of the "
         "batch. That is a variant (train.py --variant flat), but the paper's objective weights "
         "each example by 1/t."),
        (kept.mean().item() / W, "The weight 1/t is missing. About t * W tokens are masked; 1/t "
         "makes up for that, so that every level counts alike."),
        (kept.mean().item() / W / t.mean().item(),
         "You divide by the mean level of the batch: each example is divided by its own t."),
        ((kept[:, None] / t).mean().item() / W, "t was broadcast against the whole batch, (B, 1) "
         "against (B,): every example is divided by every level. Sum over dim 1 without keepdim, "
         "so that (B,) is divided by (B,)."),
        ((kept * t).mean().item() / W, "You multiply by t; the weight is 1/t."),
        ((kept / t).mean().item(), "Divide by the window length W, too, so that the loss is per "
         "token and does not grow with the window."),
        ((kept / t).mean().item() / x.shape[1],
         "Divide by the length of the response window, W, not of the whole sequence."),
        ((kept / t).sum().item() / W,
         "Take the mean over the examples of the batch, not their sum."),
        (-over(right), "The sign is wrong: the loss is MINUS the log-probability."),
    ]


def check_the_value(solution):
    for seed, levels in enumerate(([0.2, 0.5, 0.9, 1.0], [0.3, 0.6, 0.6, 0.8, 0.1])):
        arguments = case(levels, seed)
        keep = [a.clone() for a in arguments[1:]]
        loss = solution.diffusion_loss(*arguments)
        teach(all(torch.equal(a, b) for a, b in zip(arguments[1:], keep)),
              "Your function writes into its arguments; work on copies (masked_fill makes one).")
        teach_tensor(loss, (), torch.float32, "the loss")
        right, wrong = lessons(*arguments)
        mine = loss.item()
        if abs(mine - right) > 1e-4 * right:
            value, lesson = min(wrong, key=lambda one: abs(one[0] - mine))
            teach(abs(value - mine) > 3e-5 * abs(mine),
                  f"{lesson}\n(Yours: {mine:.4f}; right: {right:.4f} nats.)")
            teach(False, f"Your loss is {mine:.4f}, the right one is {right:.4f} nats. Take it "
                  "apart: one example, one masked token; which position's logits score it, what is "
                  "it divided by?")


def check_that_it_can_be_trained_with(solution):
    arguments = case([0.5, 0.9])
    model, loss = arguments[0], solution.diffusion_loss(*arguments)
    teach(loss.requires_grad, "No gradient flows back from your loss: no .item(), no .detach(), no "
          "torch.no_grad(), no new tensor on the way.")
    weights = [model.head.weight, model.blocks[0].qkv.weight, model.vit.embed.weight]
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    teach(all(gradient is not None for gradient in gradients),
          "The gradient does not reach the whole model, from the head back to the vision encoder: "
          "is there a .detach() or torch.no_grad() on the way?")


def check_an_example_without_masks(solution):
    *arguments, masked, t = case([0.5, 0.001])
    masked[1] = False
    loss = solution.diffusion_loss(*arguments, masked, t)
    teach(loss.isfinite(), "At small t an example may have no masked token at all. It counts 0; "
          f"yours makes the loss {loss.item()}.")
    right = lessons(*arguments, masked, t)[0]
    teach(abs(loss.item() - right) <= 1e-4 * right, "With one of two examples without any mask, "
          f"your loss is {loss.item():.4f}, the right one {right:.4f}: such an example counts 0, "
          "and still counts as an example in the mean over the batch.")


@torch.no_grad()
def show(solution):
    """The loss of three models by the level, beside the least possible."""
    some, rows, lines = scenes(64), torch.arange(32), []
    (images, prompt, _), response = some[rows], some.responses[rows]
    models = [shipped(name)[0] for name in ("diffusion", "weak", "ar")]
    exact, mask_id = some.exact()(rows), models[0].config.mask_id
    for level in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        t = torch.full((len(rows),), level)
        noisy, masked = forward_process(response, t, mask_id, torch.Generator().manual_seed(0))
        found = [solution.diffusion_loss(model, images, prompt, response, masked, t).item()
                 for model in models]
        least = (token_nll(exact(noisy)[0], response) * masked).sum().item()
        least /= level * masked.numel()
        lines.append(f"{level:5.1f} {found[0]:17.4f} {found[1]:14.4f} {found[2]:12.4f} "
                     f"{least:16.4f}")
    return "\n".join([
        "Your loss on 32 held-out captions, in nats, at one level t each:",
        "    t   trained weights   weaker weights   AR weights   least possible", *lines,
        "Why is the least possible not 0, and why does it grow with t? Why are the AR weights so "
        "bad "
        "at it,", "which caption 98% right from left to right?"])


test_exercise = exercise(check_the_value, check_that_it_can_be_trained_with,
                         check_an_example_without_masks, show=show)
