"""Checks exercise 1."""
import torch

from exercises.checks import exercise, scenes, shipped, teach, teach_tensor
from lab.evaluate import decoded
from lab.trace import show as in_words
from mini_dimple import confident

__all__ = ["test_exercise"]


def check_levels(solution):
    torch.manual_seed(0)
    t = solution.draw_t(20_000)
    teach_tensor(t, (20_000,), torch.float32, "t")
    teach(t.std() > 1e-3, "All levels are the same: each example of the batch has a t of its own, "
          "or a batch teaches one noise level only.")
    teach(t.max() <= 1 and t.min() >= 9.9e-4,
          f"t runs from {t.min():.4f} to {t.max():.4f}; it must stay between EPS = 0.001 and 1: "
          "the loss divides by t, and at t = 0 there is nothing to learn.")
    shares = [((t > a) & (t <= a + 0.25)).float().mean().item() for a in (0, 0.25, 0.5, 0.75)]
    said = ", ".join(f"{share:.0%}" for share in shares)
    teach(all(abs(share - 0.25) < 0.02 for share in shares), "t is not uniform: the quarters of "
          f"[0, 1] get {said} of the draws. Every noise level counts the same.")


def masked_by(solution, response, t):
    """The student's forward_process -> noisy, masked; their form checked."""
    mask_id, before = shipped()[0].config.mask_id, response.clone()
    try:
        answer = solution.forward_process(response, t, mask_id)
    except RuntimeError as error:
        teach("must match the size" not in str(error),
              f"{error}\nShapes (B, W) and (B,) do not line up: compared with a row of W tokens, t "
              "needs a second dimension, t[:, None], (B, 1).")
        teach("for 'Long'" not in str(error),
              f"{error}\nResponse holds ids, whole numbers (dtype long), and torch.rand_like makes "
              "numbers of the dtype that it is given; there are no random whole numbers between 0 "
              "and 1. Take the shape alone: torch.rand(response.shape).")
        raise
    teach(isinstance(answer, tuple) and len(answer) == 2,
          "forward_process must return two tensors: noisy, masked.")
    noisy, masked = answer
    teach(getattr(noisy, "dtype", None) != torch.bool,
          "forward_process returns noisy first, then masked; yours come in the other order.")
    teach_tensor(noisy, response.shape, torch.long, "noisy")
    teach_tensor(masked, response.shape, torch.bool, "masked")
    teach(torch.equal(response, before),
          "Your function changed the response that it was given. The loss still needs it: it is "
          "the answer key. Work on a copy; torch.where and masked_fill make one.")
    teach(torch.equal(noisy == mask_id, masked), "noisy must be [MASK] exactly where masked is "
          "True: the loss is taken there, and nowhere else.")
    teach(torch.equal(noisy[~masked], response[~masked]),
          "Tokens that are not masked must stay as they were: they are what the model reads.")
    return noisy, masked


def check_how_much_is_masked(solution):
    torch.manual_seed(0)
    t = torch.tensor([0.05, 0.3, 0.8, 1.0])
    shares = masked_by(solution, torch.zeros(4, 20_000, dtype=torch.long), t)[1].float().mean(1)
    said = ", ".join(f"{share:.2f}" for share in shares)
    said = f"For t = 0.05, 0.3, 0.8, 1 the masked shares are {said}. "
    teach(not torch.allclose(shares, 1 - t, atol=0.02),
          said + "That is 1 - t: at t = 1 everything is masked, at t = 0 nothing.")
    teach(not set(shares[:3].tolist()) <= {0.0, 1.0}, said + "Whole responses are masked, or not "
          "at all. Each token draws its own random number: torch.rand of shape (B, W), not (B, 1).")
    teach(shares.std() > 0.02, said + "They are all alike: each example has its own t. Do you use "
          "t, and row by row (t[:, None])?")
    teach(torch.allclose(shares, t, atol=0.02),
          said + "Each token becomes [MASK] with probability t of its example.")


def check_each_token_on_its_own(solution):
    torch.manual_seed(0)
    B, W = 4000, 48
    response, t = torch.zeros(B, W, dtype=torch.long), torch.full((B,), 0.5)
    masked = masked_by(solution, response, t)[1].float()
    teach(masked.std(0).max() > 0,
          "All examples have the same mask: draw B * W random numbers, not W.")
    spread = masked.sum(1).var().item()  # of a binomial: W / 4 = 12
    teach(spread > 1, "Every response has the same number of masks. In this process each token is "
          "masked on its own with probability t; their number varies.")
    centred = masked - 0.5
    neighbours = (centred[:, 1:] * centred[:, :-1]).mean().item() * 4  # their correlation
    teach(abs(neighbours) < 0.05 and (masked.mean(0) - 0.5).abs().max() < 0.06 and 9 < spread < 15,
          "The tokens of a response are not masked independently of their place and of each other.")


def check_the_padding_too(solution):
    torch.manual_seed(0)
    responses, eos_id = scenes(64).responses.clone(), shipped()[0].config.eos_id
    _, masked = masked_by(solution, responses, torch.full((64,), 0.5))
    is_padding = responses == eos_id
    words, padding = (masked[place].float().mean().item() for place in (~is_padding, is_padding))
    teach(abs(words - padding) < 0.1,
          f"At t = 0.5, {words:.0%} of the words are masked and {padding:.0%} of the EOS tokens. "
          "The padding is part of the response: by predicting it the model learns where to stop.")


def show(solution):
    """A caption noised by the student, and restored by the trained model."""
    torch.manual_seed(1)
    (model, tokenizer), some = shipped(), scenes(64)
    response = some.responses[:1]
    lines = {"as it is": response}
    for level in (0.3, 0.6, 0.9):
        lines[f"t = {level}"] = solution.forward_process(
            response, torch.tensor([level]), model.config.mask_id)[0]
    restored = decoded(model, (*some[:1][:2], lines["t = 0.9"]), confident(0.9)).tokens
    lines["restored"] = restored
    levels = " ".join(f"{t:.2f}" for t in solution.draw_t(8))
    return "\n".join([
        "A held-out picture's caption, noised by your forward process (_ is [MASK], *3: three in a "
        "row),", "and what the trained model, which sees the picture, makes of the last:",
        *(f"{name:9s} {in_words(ids[0], ids[0], tokenizer)}" for name, ids in lines.items()),
        f"A batch of eight, by your draw_t: t = {levels}",
        "Which of its words could the model know at t = 0.9, and which could it only guess?"])


test_exercise = exercise(check_levels, check_how_much_is_masked, check_each_token_on_its_own,
                         check_the_padding_too, show=show)
