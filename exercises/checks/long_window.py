"""Checks exercise 14: the padding on made-up responses, the rule on captions in windows of 48 and
144 tokens; then the shipped weights are trained on, with the reader's padding."""
import copy
from collections import Counter

import torch

from data import DESCRIBE, pad_prompts, toy
from exercises.checks import (CONFIG, EOS, MASK, MODEL, TOKENIZER, ask, compare, mean, measured,
                              scenes, teach, teach_tensor)
from lab.evaluate import decoded, graded
from mini_dimple import confident, diffusion_loss

N, LONG = 16, 144
STEPS, BATCH = 30, 8


def window_of(solution, responses, longest, generator):
    """-> the window's length, the reader's batch checked."""
    out = ask(solution.pad, responses, longest, EOS, generator)
    teach(isinstance(out, torch.Tensor) and out.dim() == 2, "pad must return a tensor (B, W).")
    W, most = out.shape[1], max(map(len, responses))
    teach(most < W <= longest, f"A window of {W} tokens for a response of {most}, which needs an "
          f"EOS behind it; `longest` is {longest}.")
    teach_tensor(out, (len(responses), W), torch.long, "what pad returns")
    teach(out.tolist() == [ids + [EOS] * (W - len(ids)) for ids in responses],
          "A row must begin with its response, as it is. What follows must be EOS, all of it.")
    return W


def padding(solution):
    responses, generator = [[7] * 3, [8, 9] * 4, [5]], torch.Generator().manual_seed(0)
    lengths = Counter(window_of(solution, responses, 12, generator) for _ in range(400))
    teach(all(60 < lengths[W] < 140 for W in range(9, 13)), "Of 400 windows, by their lengths: "
          f"{dict(sorted(lengths.items()))}. Draw anew in each call; each from 9 (the longest "
          "response and one EOS) to `longest`, 12, should come about equally often.")
    again = lambda: [window_of(solution, responses, 40, generator.manual_seed(n)) for n in range(8)]
    teach(again() == again(), "With a generator in the same state the window's length differs: "
          "draw it with the generator that you were given, so that a seed repeats a training.")


def the_share_of_eos(solution):
    for lengths, W in (([38, 38, 11, 20], 48), ([38, 38, 11, 20], 144), ([9, 3], 10)):
        found, words = solution.eos_share(torch.tensor(lengths), W), sum(lengths)
        total = len(lengths) * W
        teach(isinstance(found, float), f"eos_share returned {type(found)}, not a float.")
        compare(found, 1 - words / total, {
            "That is the share of the words; EOS is the rest.": words / total,
            "The EOS that ends a response is one, too.": (total - words - len(lengths)) / total},
            f"Responses of {lengths} tokens in windows of {W}: you say {found:.3f}, it is "
            f"{1 - words / total:.3f}. ", 1e-4)


def right(rule, W):
    return sum(measured(rule, N, length=W).right)


def short_windows(solution):
    """In a window that the model knows, nothing is to be mended."""
    mine, theirs = (measured(rule, N, length=48) for rule in (solution.rule, "confident:0.9"))
    teach(mine.passes == theirs.passes and mine.texts == theirs.texts,
          "A window of 48 tokens the model knows: decode it as `confident:0.9` does.")


def a_long_window(solution):
    windows, some = [], scenes(N, LONG)[:4]
    decoded(MODEL, some, solution.rule, limit=3, watch=lambda _, tokens: windows.append(tokens))
    why = "Is the window long enough for any answer (39 tokens, with its EOS)?"
    if min(x.shape[1] for x in windows) > 48:
        why = ("Your window stays as long as it is. EOS from 48 on does not help: the model still "
               "attends to more positions than it was trained on. A rule may return a shorter one.")
    elif (windows[0] != MASK).any():
        why = (f"Your rule commits by a pass that has seen {LONG} positions. Cut first, and commit "
               "by a pass over the shorter window (the next one, or a look of the rule's own).")
    teach(right(solution.rule, LONG) >= N - 1, f"In windows of {LONG} tokens "
          f"{right(solution.rule, LONG)} of {N} captions are right. {why}")


CHECKS = [padding, the_share_of_eos, short_windows, a_long_window]


def trained_on(solution):
    """The shipped weights after a few more steps, with the reader's padding up to LONG."""
    model = copy.deepcopy(MODEL).train()
    split = toy.examples(toy.TOYS["tiny"], STEPS * BATCH, 1, held_out=False, instruction=DESCRIBE)
    prompts = pad_prompts(split.prompts, TOKENIZER, CONFIG.prompt_tokens)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(STEPS):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        ids = [TOKENIZER.encode(text) for text in split.texts[rows]]
        loss = diffusion_loss(model, split.images[rows], prompts[rows],
                              solution.pad(ids, LONG, EOS, generator), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * min(1, (step + 1) / 5) * (1 - step / STEPS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def show(solution):
    """Windows of 48, 96 and 144: the share of EOS; captions, before and after either mending."""
    sizes, model, of = (48, 96, LONG), trained_on(solution), f"{{}} of {N}".format
    lengths = scenes(N).lengths - 1
    row = lambda name, cells: f"{name:44s}" + "".join(f"{cell:>9s}" for cell in cells)

    def first(W):
        """How many EOS confident decoding commits in its first pass."""
        noted = []
        decoded(MODEL, scenes(N, W)[:N], confident(0.9), limit=1, watch=lambda step, tokens: (
            noted.append(((step.proposal == EOS) & (step.confidence > 0.9)).sum(1).tolist())))
        return mean(noted[0])

    def later(W):
        way = lambda rows: decoded(model, scenes(N, W)[rows], confident(0.9))
        return sum(graded(way, scenes(N, W)).right)
    yield row("window, tokens", map(str, sizes))
    yield row("EOS among its tokens, by your eos_share",
              [f"{solution.eos_share(lengths, W):.0%}" for W in sizes])
    yield row("EOS committed in the first pass", [f"{first(W):.1f}" for W in sizes])
    yield row("right, confident:0.9, as shipped", [of(right("confident:0.9", W)) for W in sizes])
    yield row("right, your rule, as shipped", [of(right(solution.rule, W)) for W in sizes])
    yield row(f"right, confident:0.9, {STEPS} steps more", [of(later(W)) for W in sizes])
    yield f"({STEPS} steps of {BATCH} captions, padded by your `pad` up to {LONG}.)"
    yield "Two mendings: which one still works where an answer needs 60 tokens?"
