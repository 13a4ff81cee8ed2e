"""Checks exercise 4: against `mini_dimple.decode` example by example, and by watching each pass."""
import torch

from exercises.checks import ask, scenes, shipped, teach, teach_tensor, teach_tuple, watched
from lab.evaluate import decoded
from lab.trace import show as in_words
from mini_dimple import confident, full

MODEL, TOKENIZER = shipped()
SOME = scenes()
MASK = MODEL.config.mask_id
ENDLESS = ("Your loop does not end. Three usual reasons: where no masked position of an example "
           "passes the threshold nothing is committed (commit its most confident one); the "
           "proposal is [MASK] itself, which the model may well score highest (set its logit to "
           "-inf); or committed positions, whose confidence is high, count as above the threshold "
           "or win the argmax (look at masked positions only).")


def run(solution, images, prompt, window, threshold, temperature=0.0):
    """-> tokens, iterations, the passes of each example; the form of the answer checked."""
    with watched(MODEL, images, prompt, window.numel() + 4, ENDLESS) as seen:
        answer = ask(solution.decode, MODEL, images, prompt, window, threshold, temperature)
    tokens, iterations = teach_tuple(answer, "tokens", "iterations")
    teach_tensor(tokens, window.shape, torch.long, "tokens")
    teach_tensor(iterations, window.shape[:1], None, "iterations")
    teach(not (tokens == MASK).any(), "There are [MASK]s left in the tokens.")
    teach(torch.equal(tokens.where(window != MASK, MASK), window),
          "Tokens that were given in the window have changed: commit masked positions only.")
    return tokens, iterations.long(), seen


def what_went_together(tokens, seen, threshold):
    """From one pass to the next, with the tokens at the end."""
    for passes, end in zip(seen, tokens):
        for (window, probs), after in zip(passes, [*(window for window, _ in passes[1:]), end]):
            new = (window == MASK) & (after != MASK)
            least = probs.gather(-1, after[:, None])[new].amin() if new.any() else 1
            teach(new.sum() <= 1 or least > threshold - 1e-4,
                  f"{new.sum()} tokens were committed together, one of them with a probability of "
                  f"{least:.2f}, at a threshold of {threshold}. Several at once only above the "
                  "threshold; and confidence is the probability of the token that was drawn, "
                  "BEFORE temperature: a low temperature makes any guess look sure.")


def right(images, prompt, window, threshold):
    """What each example comes out as, decoded alone by mini_dimple -> tokens, iterations."""
    examples = zip(images.split(1), prompt.split(1), window.split(1))
    out = [decoded(MODEL, example, confident(threshold), full) for example in examples]
    return torch.cat([o.tokens for o in out]), torch.cat([o.iterations for o in out])


def it_ends(solution):
    images, prompt, window = SOME[:2]
    _, iterations, _ = run(solution, images, prompt, window[:, :9], 0.999999)
    teach((iterations <= 9).all(), f"An example of 9 masks took {iterations.max()} iterations: in "
          "some of them nothing was committed in ITS row, or it was finished and still counted. "
          "The fallback must be decided row by row, not by any() or argmax over (B, W).")


def each_example_as_the_paper_says(solution):
    for threshold in (0.5, 0.9, 0.99):
        wanted, needed = right(*SOME[:8], threshold)
        tokens, iterations, seen = run(solution, *SOME[:8], threshold)
        if torch.equal(tokens, wanted) and torch.equal(iterations, needed):
            continue
        for b in range(8):
            alone, its_own, _ = run(solution, *SOME[b:b + 1], threshold)
            teach(torch.equal(alone[0], tokens[b]) and its_own[0] == iterations[b],
                  f"Example {b} comes out differently in a batch of 8 than alone, or in "
                  f"{iterations[b]} iterations instead of {its_own[0]}. The threshold and the "
                  "fallback look at ONE row each, and a finished example counts no more passes. "
                  "(Dimple's public code selects across the batch.)")
        what_went_together(tokens, seen, threshold)
        teach(False, f"At threshold {threshold} these pictures take {needed.tolist()} iterations, "
              f"yours {iterations.tolist()}. Always {tokens.shape[1]}: is the softmax taken before "
              "[MASK] is excluded, so that its share lowers every confidence? More: are all "
              "positions above the threshold committed, not only the best? As many, but other "
              "tokens: is a committed token the proposal of its own position and pass?")


def given_tokens_stay(solution):
    images, prompt, window = SOME[:4]
    window = window.clone()
    window[:, 5] = TOKENIZER.encode(" purple")[0]
    window[:2, :3] = torch.tensor(TOKENIZER.encode("i can see"))
    tokens = run(solution, images, prompt, window, 0.9)[0]
    teach(torch.equal(tokens, right(images, prompt, window, 0.9)[0])
          and run(solution, images, prompt, tokens, 0.9)[1].sum() == 0,
          "With some tokens given, the rest comes out differently than it should; or a window "
          "without a mask takes an iteration.")


def confidence_is_read_before_temperature(solution):
    found = {}
    for temperature in (0.0, 0.05, 1e-5, 5.0):
        torch.manual_seed(0)
        found[temperature], _, seen = run(solution, *SOME[:6], 0.9, temperature)
        what_went_together(found[temperature], seen, 0.9)
    teach(torch.equal(found[0.0], found[1e-5]) and not torch.equal(found[0.0], found[5.0]),
          "At a temperature of 0.00001 the tokens must be the most probable ones, and at 5 not all "
          "of them: the proposal must be drawn from softmax(logits / temperature).")


CHECKS = [it_ends, each_example_as_the_paper_says, given_tokens_stay,
          confidence_is_read_before_temperature]


def show(solution):
    """The reader's decoding of one picture, as sample.py prints it."""
    tokens, _, seen = run(solution, *SOME[:1], 0.9)
    windows = [window for window, _ in seen[0]] + [tokens[0]]
    return "\n".join([
        "Your decoding of a held-out picture (a line: an iteration; [brackets]: what it committed; "
        "_: [MASK]):", *(f"{i:3d}  {in_words(after, before, TOKENIZER)}"
                         for i, (before, after) in enumerate(zip(windows, windows[1:]), 1)),
        "In which iterations does a single word go, and why had it to wait?"])
