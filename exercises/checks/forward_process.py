"""Checks exercise 1."""
import torch

from exercises.checks import (EOS, MASK, MODEL, SOME, TOKENIZER, ask, compare, teach, teach_tensor,
                              teach_tuple)
from lab.evaluate import decoded
from lab.trace import show as in_words
from mini_dimple import confident


def levels(solution):
    torch.manual_seed(0)
    t = solution.draw_t(20_000)
    teach_tensor(t, (20_000,), torch.float32, "t")
    teach(t.max() <= 1 and t.min() >= 9.9e-4,
          f"t runs from {t.min():.4f} to {t.max():.4f}; the loss divides by it: EPS = 0.001 to 1.")
    shares = t.histc(4, 0, 1) / len(t)
    said = ", ".join(f"{share:.0%}" for share in shares)
    teach((shares - 0.25).abs().max() < 0.02, f"The quarters of [0, 1] get {said} of your levels. "
          "Each example has a t of its own, and every level is as likely.")


def masked_by(solution, response, t):
    """The reader's mask, (B, W) bool; noisy goes with it."""
    noisy, masked = teach_tuple(ask(solution.forward_process, response, t, MASK), "noisy", "masked")
    teach_tensor(noisy, response.shape, torch.long, "noisy, the first of the two,")
    teach_tensor(masked, response.shape, torch.bool, "masked, the second of the two,")
    teach(torch.equal(noisy, response.masked_fill(masked, MASK)), "noisy must be [MASK] where "
          "masked is True, as the loss is taken there, and elsewhere the response as it was.")
    return masked


def how_much_is_masked(solution):
    torch.manual_seed(0)
    t = torch.tensor([0.05, 0.3, 0.8, 1.0])
    shares = masked_by(solution, torch.zeros(4, 20_000, dtype=torch.long), t).float().mean(1)
    said = ", ".join(f"{share:.2f}" for share in shares)
    compare(shares, t, {"That is 1 - t.": 1 - t, "Each example has its own t (t[:, None]).": t[0]},
            f"For t = 0.05, 0.3, 0.8, 1 the masked shares are {said}. Each token becomes [MASK] "
            "with probability t, by a random number of its own (shape (B, W), not (B, 1)). ", 0.02)


def each_token_on_its_own(solution):
    torch.manual_seed(0)
    B, W = 4000, 48
    masked = masked_by(solution, torch.zeros(B, W, dtype=torch.long), torch.full((B,), 0.5)).float()
    spread = masked.sum(1).var()  # of a binomial: W / 4 = 12
    neighbours = ((masked[:, 1:] - 0.5) * (masked[:, :-1] - 0.5)).mean() * 4  # their correlation
    teach(neighbours.abs() < 0.05 and (masked.mean(0) - 0.5).abs().max() < 0.06 and 9 < spread < 15,
          "The tokens are not masked independently of place, example and each other: all examples "
          "have the same mask, or as many masks. Each of the B * W tokens draws its own number.")


def the_padding_too(solution):
    torch.manual_seed(0)
    masked = masked_by(solution, SOME.responses, torch.full((64,), 0.5)).float()
    words, padding = masked[SOME.responses != EOS].mean(), masked[SOME.responses == EOS].mean()
    teach(abs(words - padding) < 0.1,
          f"At t = 0.5, {words:.0%} of the words are masked and {padding:.0%} of the EOS tokens, "
          "by which the model learns where to stop.")


CHECKS = [levels, how_much_is_masked, each_token_on_its_own, the_padding_too]


def show(solution):
    """A caption noised by the reader, and restored by the trained model."""
    torch.manual_seed(1)
    response = SOME.responses[:1]
    lines = {"as it is": response}
    for t in (0.3, 0.6, 0.9):
        lines[f"t = {t}"] = solution.forward_process(response, torch.tensor([t]), MASK)[0]
    lines["restored"] = decoded(MODEL, (*SOME[:1][:2], lines["t = 0.9"]), confident(0.9)).tokens
    yield "A held-out picture's caption, noised by your forward process (_: [MASK], *3: three),"
    yield "and what the trained model, which sees the picture, makes of the last:"
    for name, ids in lines.items():
        yield f"{name:9s} {in_words(ids[0], ids[0], TOKENIZER)}"
    drawn = " ".join(f"{t:.2f}" for t in solution.draw_t(8))
    yield f"A batch of eight, by your draw_t: t = {drawn}"
    yield "Which of its words could the model know at t = 0.9, and which could it only guess?"
