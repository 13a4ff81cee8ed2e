"""Checks exercise 14: the padding on made-up responses, the rule on captions in windows of 48 and
144 tokens; then the shipped weights are trained on, with the student's padding."""
import functools
from collections import Counter

import torch

from data import DESCRIBE, pad_prompts, toy
from exercises.checks import CPU, exercise, shipped, teach, teach_tensor
from lab.checkpoint import SHIPPED, load
from lab.evaluate import Scenes, decoded, graded
from mini_dimple import confident, diffusion_loss
from rules import checked

__all__ = ["test_exercise"]
N, LONG = 16, 144
EOS = 3
STEPS, BATCH = 30, 8


def padded(solution, responses, longest, generator):
    """-> the student's batch, its form checked."""
    given = [list(ids) for ids in responses]
    out = solution.pad(given, longest, EOS, generator)
    teach(given == responses, "Your function has written into the responses that it was given: "
          "`ids += ...` changes the list itself, `ids + ...` makes a new one.")
    teach(isinstance(out, torch.Tensor) and out.dim() == 2, "pad must return a tensor (B, W).")
    W, most = out.shape[1], max(map(len, responses))
    teach(W <= longest, f"A window of {W} tokens, where `longest` is {longest}.")
    teach(W > most, f"A window of {W} tokens for a response of {most}: it leaves no EOS behind the "
          "longest response, which then has no end to learn. The shortest window is one longer.")
    teach_tensor(out, (len(responses), W), torch.long, "what pad returns")
    for ids, row in zip(responses, out.tolist()):
        teach(row[-len(ids):] != ids, "The EOS must come behind the response, not before it.")
        teach(row[:len(ids)] == ids, "A response has changed, or does not begin its row.")
        teach(set(row[len(ids):]) == {EOS}, "What follows a response must be EOS, all of it.")
    return out


def check_padding(solution):
    responses, generator = [[7] * 3, [8, 9] * 4, [5]], torch.Generator().manual_seed(0)
    lengths = Counter(padded(solution, responses, 12, generator).shape[1] for _ in range(400))
    teach(len(lengths) > 1, f"The window always has {min(lengths)} tokens. Draw its length anew in "
          "each call: a model that is trained at one length knows that one.")
    teach(12 in lengths, "The window never has `longest` tokens. (torch.randint excludes its upper "
          "end.)")
    teach(9 in lengths, "The window never is the shortest possible one: the longest response and "
          "one EOS.")
    teach(all(60 < lengths[W] < 140 for W in range(9, 13)), "Of 400 windows, by their lengths: "
          f"{dict(sorted(lengths.items()))}. Each should come about equally often.")
    again = lambda: [padded(solution, responses, 40, generator.manual_seed(1)).shape[1]
                     for _ in range(8)]
    teach(len(set(again())) == 1, "With a generator in the same state the window's length differs: "
          "draw it with the generator that you were given, so that a seed repeats a training.")


def check_share(solution):
    for lengths, W in (([38, 38, 11, 20], 48), ([38, 38, 11, 20], 144), ([9, 3], 10)):
        found, words = solution.eos_share(torch.tensor(lengths), W), sum(lengths)
        total = len(lengths) * W
        teach(isinstance(found, float), f"eos_share must return a float, not "
              f"{type(found).__name__}.")
        where = f"Responses of {lengths} tokens in windows of {W}: you say {found:.3f}. "
        close = lambda value: abs(found - value) < 1e-4
        teach(not close(words / total), where + "That is the share of the words; EOS is the rest.")
        teach(not close((total - words) / words), where + "That is EOS for each word; the share is "
              f"of all {total} tokens.")
        teach(not close((total - words - len(lengths)) / total), where + "The EOS that ends a "
              "response is one, too.")
        teach(not close(1 - max(lengths) / W), where + "That is of the longest response alone.")
        teach(close(1 - words / total), where + f"It is {1 - words / total:.3f}.")


@functools.cache
def pictures(W):
    model, tokenizer = shipped()
    return Scenes(model.config, tokenizer, N, CPU, length=W)


def captioned(model, rule, W):
    """-> how many of N captions are right, passes of one."""
    right, _, passes = graded(lambda rows: decoded(model, pictures(W)[rows], rule), pictures(W))
    return sum(right), sum(passes) / N


def check_short_windows(solution):
    """In a window that the model knows, nothing is to be mended."""
    rule, some = checked(solution.rule, "rule"), pictures(48)[:N]
    mine, theirs = (decoded(shipped()[0], some, one) for one in (rule, confident(0.9)))
    teach((mine.passes <= theirs.passes).all(), "In a window of 48 tokens, which the model knows, "
          f"your rule takes {mine.passes.double().mean():.1f} passes where confident decoding "
          "takes "
          f"{theirs.passes.double().mean():.1f}: go straight on there.")
    teach(mine.tokens.shape == theirs.tokens.shape and torch.equal(mine.tokens, theirs.tokens),
          "In a window of 48 tokens, which the model knows, your rule should decode as "
          "`confident:0.9` does.")


def check_a_long_window(solution):
    """Watched on the first scenes; then captions."""
    windows, model = [], shipped()[0]
    watch = lambda step, tokens: windows.append(tokens)
    rule = checked(solution.rule, "rule")
    decoded(model, pictures(LONG)[:4], rule, watch=watch)
    eos, wide = model.config.eos_id, [x for x in windows if x.shape[1] > 48]
    right, passes = captioned(model, rule, LONG)
    mine = (f"In windows of {LONG} tokens {right} of {N} captions are right (confident:0.9: "
            f"{captioned(model, confident(0.9), LONG)[0]}). ")
    enough = right >= N - 1
    if len(wide) == len(windows):
        tail = all((x[:, 48:] == eos).all() for x in windows)
        teach(enough, mine + (
            "Your window is EOS from 48 on, and as long as before: the model still attends to so "
            "many positions, most of which no training has shown it. Cut them off: a rule may "
            "return a shorter window." if tail else
            "Your window stays as long as it is: a rule may return a shorter one."))
    if (windows[0] != model.config.mask_id).any():
        teach(enough, mine + f"Your first pass has seen all {LONG} positions, and your rule "
              "commits "
              "by what it found there; such tokens stay. Cut first, and commit by a pass over the "
              "shorter window (the next one, or a look of the rule's own).")
    teach(enough, mine + "Is the window at most `longest` tokens when the first token is "
          "committed, "
          "and long enough for any answer (39 tokens, with its EOS)?")


def trained_on(solution):
    """The shipped weights after a few more steps, with the student's padding up to LONG."""
    model, tokenizer, _ = load(SHIPPED, CPU)
    split = toy.examples(toy.TOYS["tiny"], STEPS * BATCH, 1, held_out=False, instruction=DESCRIBE)
    prompts = pad_prompts(split.prompts, tokenizer, model.config.prompt_tokens)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    model.train()
    for step in range(STEPS):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        ids = [tokenizer.encode(text) for text in split.texts[rows]]
        response = solution.pad(ids, LONG, model.config.eos_id, generator)
        loss = diffusion_loss(model, split.images[rows], prompts[rows], response,
                              generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * min(1, (step + 1) / 5) * (1 - step / STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def show(solution):
    """Windows of 48, 96 and 144: the share of EOS; captions, before and after either mending."""
    model, eos = shipped()[0], shipped()[0].config.eos_id
    lengths, sizes = pictures(48).lengths - 1, (48, 96, LONG)
    row = lambda name, cells: f"{name:44s}" + "".join(f"{cell:>9s}" for cell in cells)
    first = []
    for W in sizes:
        noted = []
        decoded(model, pictures(W)[:N], confident(0.9), limit=1, watch=lambda step, tokens: (
            noted.append(((step.proposal == eos) & (step.confidence > 0.9)).double().sum(1))))
        first.append(f"{noted[0].mean().item():.1f}")
    right = lambda model, rule: [f"{captioned(model, rule, W)[0]} of {N}" for W in sizes]
    return "\n".join([
        row("window, tokens", map(str, sizes)),
        row("EOS among its tokens, by your eos_share",
            [f"{solution.eos_share(lengths, W):.0%}" for W in sizes]),
        row("EOS committed in the first pass", first),
        row("right, confident:0.9, as shipped", right(model, confident(0.9))),
        row("right, your rule, as shipped", right(model, checked(solution.rule, "rule"))),
        row(f"right, confident:0.9, {STEPS} steps more", right(trained_on(solution),
                                                              confident(0.9))),
        f"({STEPS} steps of {BATCH} captions, padded by your `pad` up to {LONG}.)",
        "Two mendings: which one still works where an answer needs 60 tokens?"])


test_exercise = exercise(check_padding, check_share, check_short_windows, check_a_long_window,
                         show=show)
