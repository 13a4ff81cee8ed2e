"""Checks exercise 8: on made-up decodings, step by step; then captions."""
import functools
import random

import torch

from exercises.checks import exercise, scenes, shipped, teach, teach_tensor, way
from lab.evaluate import graded
from lab.trace import Trace, show as in_words
from mini_dimple import Step, decode, prefilled

__all__ = ["test_exercise"]
B, W = 5, 48


def step(seed, iteration, tokens, given, memory, rows=slice(None)):
    """These rows of a made-up step: confidences anew in each iteration, unequal between regions, a
    few above 0.9."""
    g = torch.Generator().manual_seed(100 * seed + iteration)
    config, masked = shipped()[0].config, tokens == shipped()[0].config.mask_id
    region = torch.rand(len(tokens), 6, generator=g).repeat_interleave(8, 1)
    confidence = 0.5 + 0.3 * region + 0.18 * torch.rand(tokens.shape, generator=g)
    confidence[~masked] = 0.99
    # of each token but the proposal, 7, and [MASK]
    others = (1 - confidence) / (config.vocab_size - 2)
    logits = others.log()[..., None].repeat(1, 1, config.vocab_size)
    logits[..., 7] = confidence.log()
    logits = logits[rows]
    return Step(iteration, 2 * W, tokens[rows], given[rows], logits, lambda tokens: logits,
                config.mask_id, config.eos_id, memory)


def start(seed):
    """-> tokens, given of a window with priors: none, few, whole blocks, all of it."""
    rng, g = random.Random(seed), torch.Generator().manual_seed(seed)
    share = torch.tensor([rng.choice([0, 0, 0.3, 0.8]) for _ in range(B)])
    given = torch.rand(B, W, generator=g) < share[:, None]
    given[1, :20], given[2] = True, seed % 3 == 0
    return torch.where(given, 5, shipped()[0].config.mask_id), given


def answer(solution, made, k):
    """What the rule names of a made-up step."""
    masked = made.masked.clone()  # the rule may write into its step
    named = solution.rule(made, k)
    teach_tensor(named, masked.shape, torch.bool, "what the rule returns")
    return named & masked


def means(confidence, positions):
    """-> {block: what a rule may take for the block's confidence: name -> value}, of its masked
    positions, and of a block's all."""
    return {block: {"mean": confidence[free].mean().item(), "max": confidence[free].max().item(),
                    "sum": confidence[free].sum().item(), "all": confidence[every].mean().item()}
            for block, (free, every) in positions.items()}


WRONG = {  # what was maximised in place of the mean over masked positions -> the lesson
    "first": "That is the first one with a [MASK], as in rules/blocks.py.",
    "all": "That is the block with the highest mean over ALL its positions; committed and given "
           "ones, whose confidence is high, do not count.",
    "max": "That is the block with the single most confident position; it is the mean over the "
           "block's masked positions that counts.",
    "sum": "That is the block with the highest sum, in which a block with more masks counts more; "
           "divide by how many positions of it are masked.",
}


def check_blocks(solution):
    for seed in range(5):
        for k in (5, 16, 48):
            decoding(solution, seed, k)


def decoding(solution, seed, k):
    """A made-up decoding by the student's rule, each step of it checked."""
    tokens, given = start(seed)
    memory, alone, begun = {}, [{} for _ in range(B)], [None] * B
    mask_id = shipped()[0].config.mask_id
    for iteration in range(2 * W):
        masked = tokens == mask_id
        if not masked.any():
            return
        made = lambda memory, rows=slice(None): step(seed, iteration, tokens, given, memory, rows)
        confidence = made({}).confidence
        named = answer(solution, made(memory), k)
        single = [answer(solution, made(alone[b], slice(b, b + 1)), k)[0] for b in range(B)]
        teach(torch.equal(torch.stack(single), named), "An example's commits depend on the others "
              "in the batch: each is in a block of its own. Three usual causes: a mean, a minimum "
              "or any() over everything (use dim=1), one remembered block for the whole batch, or "
              "memory outside of step.memory, which outlives the decoding.")
        for b in range(B):
            if masked[b].any():
                begun[b] = of_row(named[b], masked[b], confidence[b], begun[b], k)
        tokens = made({}).commit(named)
    teach(False, "A decoding with your rule does not end.")


def of_row(named, masked, confidence, begun, k):
    """One example of a step, (W,) each, and the block that it has begun -> the block that it is in
    now; fails with a lesson where the rule goes wrong."""
    positions = {}  # block with a [MASK] -> its masked positions, all of its positions
    for block in range((W + k - 1) // k):
        every = torch.arange(block * k, min(W, block * k + k))
        if masked[every].any():
            positions[block] = every[masked[every]], every
    values, places = means(confidence, positions), named.nonzero()[:, 0]
    best = lambda way: max(values, key=lambda block: values[block][way])
    fresh = begun not in positions
    now = best("mean") if fresh else begun
    free, every = positions[now]
    where = f"(k = {k}: positions {every[0]} to {every[-1]})"
    teach(len(places), f"An example that is in block {now} {where} commits nothing. Where none of "
          "the block passes 0.9, name its most confident masked position yourself: else the loop "
          "takes the most confident of the WHOLE window, which breaks the order.")
    blocks = sorted({place // k for place in places.tolist()})
    teach(len(blocks) == 1, f"An example commits in blocks {blocks} at once (k = {k}): only in the "
          "one that it is in.")
    if blocks != [now] and fresh:
        guesses = {"first": min(values), **{way: best(way) for way in ("all", "max", "sum")}}
        why = next((WRONG[way] for way, block in guesses.items() if [block] == blocks), "")
        teach(False, f"An example begins block {blocks[0]} where block {now} {where} has the "
              f"highest mean confidence over its masked positions. {why}")
    teach(blocks == [now], f"An example that has begun block {now} {where} and has [MASK]s left in "
          f"it goes on in block {blocks[0]}. Finish a block before you choose the next: which one "
          "was begun has to be remembered, in step.memory, for each example.")
    sure = free[confidence[free] > 0.9]
    named = set(places.tolist())
    teach(set(sure.tolist()) <= named, "A masked position of the current block with a confidence "
          "above 0.9 is left out.")
    teach(named <= {*sure.tolist(), free[confidence[free].argmax()].item()},
          "Below 0.9, only the most confident masked position of the block may be committed.")
    return now


def by_student(solution):
    return lambda made: solution.rule(made, 16)


@functools.cache
def measured(rule, block):
    """By the student's rule or one of rules/ -> of 64 captions, how many are right; passes of one;
    how many leave an object out."""
    rule = rule if isinstance(rule, str) else by_student(rule)
    right, wrong, iterations = graded(way(rule, 64, block), scenes(64))
    return sum(right), sum(iterations) / 64, wrong.count("missing")


def check_captions(solution):
    right, *_ = measured(solution, "trained")
    teach(right >= 0.95 * 64, f"Only {right} of 64 captions decoded with your rule, blocks of 16, "
          "are right.")


def show(solution):
    """The order of the blocks in one caption, and the student's rule beside two others."""
    (model, tokenizer), (images, prompt, window) = shipped(), scenes(64)[1:2]
    trace, lines, before = Trace(window), [], window[0]
    decode(prefilled(model, images, prompt), window, model.config, by_student(solution),
           watch=trace)
    seen = []
    for record in trace:
        new = ((record.tokens[0] != before).nonzero()[:, 0] // 16).unique().tolist()
        seen += [block for block in new if block not in seen]
        before = record.tokens[0]
    for name, rule in (("confident:0.9", "confident:0.9"), ("blocks:16", "blocks:16"),
                       ("yours, k = 16", solution)):
        cells = ["{} of 64 in {:.2f}, {} missing".format(*measured(rule, block))
                 for block in ("trained", "weak")]
        lines.append(f"{name:15s}" + "".join(f"{cell:>31s}" for cell in cells))
    return "\n".join([
        f"One caption: {in_words(before, before, tokenizer)}",
        f"Your rule takes its blocks of 16 in this order: {', '.join(map(str, seen))}",
        "Fully right of 64 captions, passes, and how many captions miss an object:",
        " " * 15 + f"{'trained weights':>31s}{'weaker weights':>31s}", *lines,
        "From which end does your rule write, and which mistake becomes rare by it?"])


test_exercise = exercise(check_blocks, check_captions, show=show)
