"""Checks exercise 4: against `mini_dimple.decode` example by example, and its passes counted."""
import torch

from exercises.checks import (MASK, MODEL, SOME, TOKENIZER, Watched, ask, teach, teach_tensor,
                              teach_tuple)
from lab.evaluate import decoded
from lab.trace import show as in_words
from mini_dimple import confident, full


def run(solution, images, prompt, window, threshold, temperature=0.0):
    """-> tokens, iterations, the windows of all passes; the form of the answer checked."""
    model = Watched()
    answer = ask(solution.decode, model, images, prompt, window, threshold, temperature)
    tokens, iterations = teach_tuple(answer, "tokens", "iterations")
    teach_tensor(tokens, window.shape, torch.long, "tokens")
    teach_tensor(iterations, window.shape[:1], None, "iterations")
    teach(not (tokens == MASK).any(), "There are [MASK]s left in the tokens.")
    teach(torch.equal(tokens.where(window != MASK, MASK), window),
          "Tokens that were given in the window have changed: commit masked positions only.")
    return tokens, iterations.long(), model.windows


def right(images, prompt, window, threshold):
    """What mini_dimple decodes -> tokens, iterations."""
    out = decoded(MODEL, (images, prompt, window), confident(threshold), full)
    return out.tokens, out.iterations


def each_example_as_the_paper_says(solution):
    for threshold in (0.5, 0.9):
        wanted, needed = right(*SOME[:8], threshold)
        tokens, iterations, _ = run(solution, *SOME[:8], threshold)
        if torch.equal(tokens, wanted) and torch.equal(iterations, needed):
            continue
        for b in range(8):
            alone, its_own, _ = run(solution, *SOME[b:b + 1], threshold)
            teach(torch.equal(alone[0], tokens[b]) and its_own[0] == iterations[b],
                  f"Example {b} comes out differently in a batch of 8 than alone, or in "
                  f"{iterations[b]} iterations instead of {its_own[0]}. The threshold and the "
                  "fallback look at ONE row each, and a finished example counts no more passes.")
        teach(False, f"At threshold {threshold} these pictures take {needed.tolist()} iterations, "
              f"yours {iterations.tolist()}. Are all positions above the threshold committed, no "
              "others, and is [MASK] excluded before the softmax, so that it lowers no confidence?")


def given_tokens_stay(solution):
    images, prompt, window = SOME[:4]
    window = window.clone()
    window[:, 5] = TOKENIZER.encode(" purple")[0]
    window[:2, :3] = torch.tensor(TOKENIZER.encode("i can see"))
    tokens = run(solution, images, prompt, window, 0.9)[0]
    teach(torch.equal(tokens, right(images, prompt, window, 0.9)[0])
          and run(solution, images, prompt, tokens, 0.9)[1].sum() == 0,
          "With tokens given, the rest comes out differently; or nothing is left, and it iterates.")


def confidence_is_read_before_temperature(solution):
    found = {}
    for temperature in (0.0, 1e-5, 5.0):
        torch.manual_seed(0)
        found[temperature], iterations, _ = run(solution, *SOME[:3], 0.9, temperature)
        teach(temperature != 1e-5 or torch.equal(iterations, right(*SOME[:3], 0.9)[1]),
              "At a temperature of 0.00001 your decoding takes other iterations than at 0. "
              "Confidence is read BEFORE temperature: a low one makes any guess look sure.")
    teach(torch.equal(found[0.0], found[1e-5]) and not torch.equal(found[0.0], found[5.0]),
          "At a temperature of 0.00001 your tokens must be the most probable ones, at 5 others: "
          "the proposal is drawn from softmax(logits / temperature).")


CHECKS = [each_example_as_the_paper_says, given_tokens_stay, confidence_is_read_before_temperature]


def show(solution):
    """The reader's decoding of one picture, as sample.py prints it."""
    tokens, _, windows = run(solution, *SOME[:1], 0.9)
    windows = [*torch.cat(windows), tokens[0]]
    yield ("Your decoding of a held-out picture (a line: an iteration; [brackets]: what it "
           "committed; _: [MASK]):")
    for i, (before, after) in enumerate(zip(windows, windows[1:]), 1):
        yield f"{i:3d}  {in_words(after, before, TOKENIZER)}"
    yield "In which iterations does a single word go, and why had it to wait?"
