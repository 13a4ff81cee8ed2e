"""Checks exercise 8: on made-up steps, position by position; then captions."""
import random

import torch

from exercises.checks import exercise, scenes, shipped, teach, teach_tensor
from lab.evaluate import decoded, graded
from mini_dimple import Step
from rules import checked

__all__ = ["test_exercise"]


def step(seed, rows=slice(None), B=5, W=48):
    """These rows of a made-up step: examples at different stages, some tokens given, confidences
    around 0.9."""
    rng, g = random.Random(seed), torch.Generator().manual_seed(seed)
    done = torch.tensor([rng.randrange(W) for _ in range(B)])
    masked = (torch.arange(W) >= done[:, None]) & (torch.rand(B, W, generator=g) < 0.7)
    masked[:, -1] = True
    given = ~masked & (torch.rand(B, W, generator=g) < 0.3)
    least = 0.62 if seed % 2 else 0.55  # at even seeds none is above 0.9
    confidence = torch.rand(B, W, generator=g) * 0.3 + least
    confidence[~masked] = 0.99
    config = shipped()[0].config
    tokens = torch.where(masked, config.mask_id, torch.full((B, W), 5))
    # of each token but the proposal, 7, and [MASK]
    others = (1 - confidence) / (config.vocab_size - 2)
    logits = others.log()[..., None].repeat(1, 1, config.vocab_size)
    logits[..., 7] = confidence.log()
    look = lambda tokens: logits[rows]
    return Step(rng.randrange(9), 2 * W, tokens[rows], given[rows], config.mask_id, config.eos_id,
                look, memory={}, temperature=0.0, generator=None)


def block_of(masked, k):
    """masked (W,) -> positions of the first block with a mask."""
    first = masked.nonzero()[0, 0].item() // k
    return range(first * k, min(first * k + k, len(masked)))


def commits(solution, seed, k, rows=slice(None)):
    """What the rule names of a made-up step; of a fresh one, as it may write into it."""
    made = step(seed, rows)
    masked = made.masked.clone()
    answer = solution.rule(made, k)
    teach_tensor(answer, masked.shape, torch.bool, "what the rule returns")
    return answer & masked


def check_only_the_current_block(solution):
    for seed in range(12):
        for k in (1, 5, 16, 48):
            made = step(seed)
            commit = commits(solution, seed, k)
            rows = [slice(b, b + 1) for b in range(len(commit))]
            alone = torch.cat([commits(solution, seed, k, one) for one in rows])
            teach(torch.equal(alone, commit), "An example's commits depend on the others in the "
                  "batch: each has a current block of its own. Two usual causes: the block's "
                  "minimum taken over everything (use dim=1), or a fallback decided for the whole "
                  "batch (any() instead of any(1)).")
            for b, row in enumerate(commit):
                block = block_of(made.masked[b], k)
                outside = [i for i in row.nonzero()[:, 0].tolist() if i not in block]
                teach(not outside, f"With k = {k}, an example whose first mask is at "
                      f"{made.masked[b].nonzero()[0, 0]} commits position {(outside or [0])[0]}; "
                      f"its current block is {block[0]} to {block[-1]}. Blocks start at multiples "
                      "of k, not at the first [MASK]; and which one it is follows from what is "
                      "masked, not from step.iteration.")
                teach(row.any(), f"An example whose current block is {block[0]} to {block[-1]} "
                      f"commits nothing of it (k = {k}). Where none of the block passes 0.9, name "
                      "its most confident masked position yourself: else the loop takes the most "
                      "confident of the WHOLE window, which breaks the order. (A block whose other "
                      "tokens are given or committed has no [MASK] and is done.)")


def check_what_is_committed_within_it(solution):
    for seed in range(12):
        for k in (5, 16, 48):
            made = step(seed)
            commit = commits(solution, seed, k)
            for masked, confidence, row in zip(made.masked, made.confidence, commit):
                block = [i for i in block_of(masked, k) if masked[i]]
                sure = [i for i in block if confidence[i] > 0.9]
                best = max(block, key=lambda i: confidence[i])
                got = row.nonzero()[:, 0].tolist()
                teach(set(sure) <= set(got),
                      "A position of the current block with a confidence above 0.9 is left out.")
                teach(set(got) <= {*sure, best}, "Below 0.9, only the most confident masked "
                      "position of the block may be committed.")


def check_captions(solution):
    model, some, found = shipped()[0], scenes(64), {}
    for k in (8, 48):
        rule = checked(lambda made: solution.rule(made, k), "rule")
        right, _, iterations = graded(lambda rows: decoded(model, some[rows], rule), some)
        found[k] = sum(right) / 64, sum(iterations) / 64
    print("\n" + "; ".join(f"k = {k}: {right:.1%} fully right in {iterations:.2f} iterations"
                           for k, (right, iterations) in found.items()))
    said = ", ".join(f"k = {k}: {right:.1%}" for k, (right, _) in found.items())
    teach(min(right for right, _ in found.values()) >= 0.95,
          f"Captions decoded with your rule are right too rarely: {said}.")
    teach(found[8][1] > found[48][1],
          "Blocks of 8 should need more iterations than one block of 48.")


test_exercise = exercise(check_only_the_current_block, check_what_is_committed_within_it,
                         check_captions)
