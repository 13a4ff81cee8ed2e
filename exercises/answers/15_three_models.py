"""Exercise 15, an answer: what is likely, and one open choice with it; and what has become
improbable is taken back, twice at most. On the checker's 64 scenes 64, 64 and 56 are right, greedy,
in 6.0, 5.0 and 4.4 passes; `confident:0.9` has 64, 64 and 50, in 10.9, 10.9 and 11.5. On 300 scenes
with the weak weights 258 greedy and 240 sampled, to its 242 and 243."""
import torch


def rule(step, sure=0.6, doubtful=0.1, most=2):
    commit = step.masked & (step.confidence > sure)
    open_choices = step.confidence.masked_fill(~step.masked | commit, -1)  # (B, W)
    window = step.commit(commit.scatter(1, open_choices.argmax(1, keepdim=True), True))
    now = step.probs.gather(-1, step.tokens[..., None]).squeeze(-1)        # (B, W)
    times = step.memory.setdefault("times", torch.zeros_like(step.tokens))
    back = ~step.masked & ~step.given & (now < doubtful) & (times < most)
    times += back
    return window.masked_fill(back, step.mask_id)
