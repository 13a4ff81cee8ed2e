"""Checks exercise 4: against `mini_dimple.decode` example by example, and by watching each pass."""
import torch

from exercises.checks import exercise, scenes, shipped, teach, teach_tensor, watched
from lab.evaluate import decoded
from lab.trace import show as in_words
from mini_dimple import confident, full

__all__ = ["test_exercise"]
ENDLESS = ("Your loop does not end. Three usual reasons: where no masked position of an example "
           "passes the threshold nothing is committed (commit its most confident one); the "
           "proposal is [MASK] itself, which the model may well score highest (set its logit to "
           "-inf); or committed positions, whose confidence is high, count as above the threshold "
           "or win the argmax (look at masked positions only).")


def run(solution, images, prompt, window, threshold, temperature=0.0):
    """-> tokens, iterations, the passes of each example; with the form of the answer checked."""
    (model, _), before = shipped(), window.clone()
    with watched(model, images, prompt, window.numel() + 4, ENDLESS) as seen:
        answer = solution.decode(model, images, prompt, window, threshold, temperature)
    teach(isinstance(answer, tuple) and len(answer) == 2,
          "decode must return two tensors: tokens, iterations.")
    tokens, iterations = answer
    teach(torch.equal(window, before),
          "Your function changed the window that it was given; decode into a copy: window.clone().")
    teach_tensor(tokens, window.shape, torch.long, "tokens")
    teach(isinstance(iterations, torch.Tensor) and tuple(iterations.shape) == (len(window),),
          f"iterations must be a tensor ({len(window)},): one number for each example.")
    teach(not (tokens == model.config.mask_id).any(), "There are [MASK]s left in the tokens.")
    given = window != model.config.mask_id
    teach(torch.equal(tokens[given], window[given]),
          "Tokens that were given in the window have changed: commit masked positions only.")
    return tokens, iterations, seen


def right(images, prompt, window, threshold):
    """What each example comes out as, decoded alone by mini_dimple -> tokens, iterations."""
    (model, _), rule = shipped(), confident(threshold)
    examples = zip(images.split(1), prompt.split(1), window.split(1))
    out = [decoded(model, example, rule, full) for example in examples]
    return torch.cat([o.tokens for o in out]), torch.cat([o.iterations for o in out])


def check_it_ends(solution):
    images, prompt, window = scenes(64)[:2]
    _, iterations, _ = run(solution, images, prompt, window[:, :9], 0.999999)
    teach((iterations <= 9).all(),
          f"An example of 9 masks took {iterations.max()} iterations: in some of them nothing was "
          "committed in ITS row, or it was finished and still counted. Is the fallback decided for "
          "the whole batch (any() or argmax over (B, W))? It must be decided row by row.")


def check_a_batch_decodes_as_each_example_alone(solution):
    images, prompt, window = scenes(64)[:8]
    for threshold in (0.9, 0.99):
        tokens, iterations, _ = run(solution, images, prompt, window, threshold)
        for b in range(8):
            one = (x[b:b + 1] for x in (images, prompt, window))
            alone, its_own, _ = run(solution, *one, threshold)
            teach(torch.equal(alone, tokens[b:b + 1]), f"Example {b} comes out differently in a "
                  "batch of 8 than alone: the others influence it. The threshold and the fallback "
                  "look at ONE row each; an argmax or any() over the whole (B, W) selects across "
                  "the batch, as Dimple's public code does.")
            teach(its_own[0] == iterations[b],
                  f"Example {b} takes {its_own[0]} iterations alone and {iterations[b]} in a batch "
                  "of 8. Either the others influence it (the fallback must look at ONE row), or "
                  "you count passes for an example that is finished.")


def check_each_example_as_the_paper_says(solution):
    images, prompt, window = scenes(64)[:8]
    for threshold in (0.5, 0.9):
        wanted, needed = right(images, prompt, window, threshold)
        tokens, iterations, seen = run(solution, images, prompt, window, threshold)
        watch_commits(tokens, seen, threshold)
        teach(torch.equal(iterations.long(), needed), f"At threshold {threshold} these pictures "
              f"take {needed.tolist()} iterations, yours {iterations.tolist()}. Always "
              f"{window.shape[1]}: is the softmax taken before [MASK] is excluded, so that its "
              "share lowers every confidence? More: are all positions above the threshold "
              "committed, not only the best? Fewer: is something committed below it?")
        teach(torch.equal(tokens, wanted),
              "The tokens differ from confident decoding's, though the number of iterations does "
              "not: is a committed token the proposal of its own position and pass?")


def check_given_tokens_stay(solution):
    (model, tokenizer), (images, prompt, window) = shipped(), scenes(64)[:4]
    window = window.clone()
    window[:, 5] = tokenizer.encode(" purple")[0]
    window[:2, :3] = torch.tensor(tokenizer.encode("i can see"))
    tokens, iterations, _ = run(solution, images, prompt, window, 0.9)
    teach(torch.equal(tokens, right(images, prompt, window, 0.9)[0]),
          "With some tokens given, the rest comes out differently than it should.")
    _, none, _ = run(solution, images[:1], prompt[:1], tokens[:1], 0.9)
    teach(none[0] == 0, "A window without a mask needs 0 iterations.")


def watch_commits(tokens, seen, threshold):
    """From one pass to the next: what was committed had the confidence to be, before temperature;
    what is committed stays."""
    mask_id = shipped()[0].config.mask_id
    for b, passes in enumerate(seen):
        passes = [p for p in passes if (p.window == mask_id).any()]
        for now, after in zip(passes, [*(p.window for p in passes[1:]), tokens[b]]):
            masked = now.window == mask_id
            teach(torch.equal(now.window[~masked], after[~masked]),
                  "A committed token has changed in a later iteration. Committed tokens never "
                  "change. (In a row without masks an argmax is 0: leave such rows alone.)")
            new = masked & (after != mask_id)
            if new.sum() <= 1:
                continue
            least = now.probs.gather(-1, after[:, None])[new].min()  # of what was committed
            teach(least > threshold - 1e-4,
                  f"{new.sum()} tokens were committed together, one of them with a probability of "
                  f"{least:.2f}, at a threshold of {threshold}. Several at once only above the "
                  "threshold; and confidence is the probability of the token that was drawn, "
                  "BEFORE temperature: a low temperature makes any guess look sure.")


def check_confidence_is_read_before_temperature(solution):
    images, prompt, window = scenes(64)[:6]
    found = {}
    for temperature in (0.0, 0.05, 1e-5, 5.0):
        torch.manual_seed(0)
        found[temperature], _, seen = run(solution, images, prompt, window, 0.9, temperature)
        watch_commits(found[temperature], seen, 0.9)
    teach(torch.equal(found[0.0], found[1e-5]), "At a temperature of 0.00001 the tokens are not "
          "the most probable ones: the proposal must be drawn from softmax(logits / temperature).")
    teach(not torch.equal(found[0.0], found[5.0]), "At a temperature of 5 all tokens are the most "
          "probable ones still: the proposal must be drawn from softmax(logits / temperature).")


def show(solution):
    """The student's decoding of one picture, as sample.py prints it."""
    images, prompt, window = scenes(64)[:1]
    tokens, _, seen = run(solution, images, prompt, window, 0.9)
    windows = [p.window for p in seen[0] if (p.window == shipped()[0].config.mask_id).any()]
    lines = [f"{i:3d}  {in_words(after, before, shipped()[1])}" for i, (before, after) in enumerate(
        zip(windows, [*windows[1:], tokens[0]]), 1)]
    return "\n".join(["Your decoding of a held-out picture (a line: an iteration; [brackets]: what "
                      "it "
                      "committed; _: [MASK]):", *lines,
                      "In which iterations does a single word go, and why had it to wait?"])


test_exercise = exercise(
    check_it_ends, check_a_batch_decodes_as_each_example_alone,
    check_each_example_as_the_paper_says, check_given_tokens_stay,
    check_confidence_is_read_before_temperature, show=show)
