"""Checks exercise 1."""
import torch

from exercises.checks import ask, scenes, shipped, teach, teach_tensor, teach_tuple
from lab.evaluate import decoded
from lab.trace import show as in_words
from mini_dimple import confident

MODEL, TOKENIZER = shipped()
SOME = scenes()
MASK, EOS = MODEL.config.mask_id, MODEL.config.eos_id


def levels(solution):
    torch.manual_seed(0)
    t = solution.draw_t(20_000)
    teach_tensor(t, (20_000,), torch.float32, "t")
    teach(t.max() <= 1 and t.min() >= 9.9e-4,
          f"t runs from {t.min():.4f} to {t.max():.4f}. It must stay between EPS = 0.001 and 1: "
          "the loss divides by t, and at t = 0 there is nothing to learn.")
    shares = t.histc(4, 0, 1) / len(t)
    said = ", ".join(f"{share:.0%}" for share in shares)
    teach((shares - 0.25).abs().max() < 0.02, f"The quarters of [0, 1] get {said} of the draws. Each "
          "example has a t of its own, and every level is as likely.")


def masked_by(solution, response, t):
    """The reader's mask, (B, W) bool; noisy goes with it."""
    noisy, masked = teach_tuple(ask(solution.forward_process, response, t, MASK), "noisy", "masked")
    teach_tensor(noisy, response.shape, torch.long, "noisy, the first of the two,")
    teach_tensor(masked, response.shape, torch.bool, "masked, the second of the two,")
    teach(torch.equal(noisy, response.masked_fill(masked, MASK)), "noisy must be [MASK] where masked "
          "is True, as the loss is taken there, and elsewhere the response as it was.")
    return masked


def how_much_is_masked(solution):
    torch.manual_seed(0)
    t = torch.tensor([0.05, 0.3, 0.8, 1.0])
    shares = masked_by(solution, torch.zeros(4, 20_000, dtype=torch.long), t).float().mean(1)
    said = ", ".join(f"{share:.2f}" for share in shares)
    said = f"For t = 0.05, 0.3, 0.8, 1 the masked shares are {said}. "
    teach(not torch.allclose(shares, 1 - t, atol=0.02), said + "That is 1 - t: at t = 1 everything "
          "is masked, at t = 0 nothing.")
    teach(not set(shares[:3].tolist()) <= {0.0, 1.0}, said + "Whole responses are masked, or not "
          "at all. Each token draws its own random number: torch.rand of shape (B, W), not (B, 1).")
    teach(torch.allclose(shares, t, atol=0.02), said + "Each token becomes [MASK] with probability t "
          "of its example. Do you use t row by row (t[:, None])?")


def each_token_on_its_own(solution):
    torch.manual_seed(0)
    B, W = 4000, 48
    masked = masked_by(solution, torch.zeros(B, W, dtype=torch.long), torch.full((B,), 0.5)).float()
    spread = masked.sum(1).var()  # of a binomial: W / 4 = 12
    teach(masked.std(0).max() > 0 and spread > 1, "All examples have the same mask, or as many "
          "masks. Each of the B * W tokens draws a random number of its own, so their number varies.")
    centred = masked - 0.5
    neighbours = (centred[:, 1:] * centred[:, :-1]).mean() * 4  # their correlation
    teach(neighbours.abs() < 0.05 and (masked.mean(0) - 0.5).abs().max() < 0.06 and 9 < spread < 15,
          "The tokens of a response are not masked independently of their place and of each other.")


def the_padding_too(solution):
    torch.manual_seed(0)
    masked, is_eos = masked_by(solution, SOME.responses, torch.full((64,), 0.5)), SOME.responses == EOS
    words, padding = (masked[place].float().mean() for place in (~is_eos, is_eos))
    teach(abs(words - padding) < 0.1,
          f"At t = 0.5, {words:.0%} of the words are masked and {padding:.0%} of the EOS tokens. "
          "The padding is part of the response: by predicting it the model learns where to stop.")


CHECKS = [levels, how_much_is_masked, each_token_on_its_own, the_padding_too]


def show(solution):
    """A caption noised by the reader, and restored by the trained model."""
    torch.manual_seed(1)
    response = SOME.responses[:1]
    lines = {"as it is": response}
    for t in (0.3, 0.6, 0.9):
        lines[f"t = {t}"] = solution.forward_process(response, torch.tensor([t]), MASK)[0]
    lines["restored"] = decoded(MODEL, (*SOME[:1][:2], lines["t = 0.9"]), confident(0.9)).tokens
    return "\n".join([
        "A held-out picture's caption, noised by your forward process (_ is [MASK], *3: three in a "
        "row),", "and what the trained model, which sees the picture, makes of the last:",
        *(f"{name:9s} {in_words(ids[0], ids[0], TOKENIZER)}" for name, ids in lines.items()),
        f"A batch of eight, by your draw_t: t = {' '.join(f'{t:.2f}' for t in solution.draw_t(8))}",
        "Which of its words could the model know at t = 0.9, and which could it only guess?"])
