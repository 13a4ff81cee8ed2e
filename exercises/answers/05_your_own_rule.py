"""Exercise 5, an answer: what is sure, and one open choice with it (100% of captions are right on
the exact posterior and on the trained weights, in 6 passes).

And one to the stretch goal, `bold`: 3.00 passes on the exact posterior and 3.7 on the trained
weights, greedy and sampled, 96.7 to 100% right (60 scenes, `python -m exercises --answers 5` with
this rule in place of the other). The joints of the caption go first, so that from then on each run
of neighbouring masks is a phrase of its own, whose wording does not depend on the others'."""
import torch
import torch.nn.functional as F


def rule(step):
    sure = step.confidence > 0.9
    open_choices = step.confidence.masked_fill(~step.masked | sure, -1)  # (B, W)
    return sure.scatter(1, open_choices.argmax(1, keepdim=True), True)


def bold(step):
    sure, W = step.confidence > 0.8, step.masked.shape[1]
    run = (step.masked & ~F.pad(step.masked, (1, -1))).cumsum(1)  # (B, W) which run of masks
    ranked = step.confidence - 1e-6 * torch.arange(W, device=run.device)  # of equals, the first
    open_choices = ranked.masked_fill(~step.masked | sure, -1)
    best = torch.full_like(ranked, -1).scatter_reduce(1, run, open_choices, "amax")
    return sure | (open_choices == best.gather(1, run)) & (open_choices > -1)
