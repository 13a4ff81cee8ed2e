"""Checks exercise 8: on made-up decodings, step by step; then captions."""
import itertools

import torch

from exercises.checks import CONFIG, MODEL, SOME, TOKENIZER, mean, measured, teach, teach_tensor
from lab.trace import Trace, show as in_words
from mini_dimple import decode, prefilled

B, W = 5, 48


def made_up(seed):
    """-> a look with confidences anew in each pass, unequal between regions, few above 0.9."""
    def look(tokens, state):
        g = torch.Generator().manual_seed(100 * seed + (state or 0))
        region = torch.rand(B, 6, generator=g).repeat_interleave(8, 1)
        confidence = 0.5 + 0.3 * region + 0.18 * torch.rand(B, W, generator=g)
        confidence[tokens != CONFIG.mask_id] = 0.99
        others = (1 - confidence) / (CONFIG.vocab_size - 2)  # not the proposal, 7, nor [MASK]
        logits = others.log()[..., None].repeat(1, 1, CONFIG.vocab_size)
        logits[..., 7] = confidence.log()
        return logits, (state or 0) + 1
    return look


def blocks(solution):
    """In decodings of windows with priors: none, few, whole blocks, all of it."""
    for seed, k in itertools.product(range(5), (5, 16, 48)):
        g, begun = torch.Generator().manual_seed(seed), [None] * B
        given = torch.rand(B, W, generator=g) < torch.tensor([0, 0.3, 1, 0.8, 0])[:, None]
        given[1, :20] = True

        def watched(step):
            masked, confidence = step.masked.clone(), step.confidence.clone()
            named = solution.rule(step, k)
            teach_tensor(named, (B, W), torch.bool, "what the rule returns")
            for b in masked.any(1).nonzero()[:, 0].tolist():
                begun[b] = of_row((named & masked)[b], masked[b], confidence[b], begun[b], k)
            return named
        decode(made_up(seed), torch.where(given, 5, CONFIG.mask_id), CONFIG, watched)


WRONG = {  # lesson -> what was maximised (all confidences of a block, its masked ones)
    "Yours is the first one with a [MASK], as in rules/blocks.py.": lambda every, free: 0,
    "Yours has the highest mean over ALL positions.": lambda every, free: every.mean(),
    "Yours has the highest sum: divide by how many are masked.": lambda every, free: free.sum()}


def of_row(named, masked, confidence, begun, k):
    """One example of a step, (W,) each, and the block that it has begun -> the block that it is in
    now; fails with a lesson where the rule goes wrong."""
    all_of = dict(enumerate(torch.arange(W).split(k)))
    free = {n: every[masked[every]] for n, every in all_of.items() if masked[every].any()}
    best = lambda score: max(free, key=lambda n: score(confidence[all_of[n]], confidence[free[n]]))
    now = begun if begun in free else best(lambda every, free: free.mean())
    here = confidence[free[now]]
    right = free[now][(here > 0.9) | (here == here.max())].tolist()
    mine = named.nonzero()[:, 0].tolist()
    if mine == right:
        return now
    why = ("Of its block commit all masked positions above 0.9, else the most confident one; each "
           "example on its own (dim=1).")
    chosen = {place // k for place in mine}
    if not mine:
        why = ("Where none of the block passes 0.9, name its most confident position yourself: the "
               "loop would take that of the WHOLE window, which breaks the order.")
    elif chosen != {now} and begun == now:
        why = ("It has begun that block: finish it before you choose the next. Remember it, for "
               "each example, in step.memory, which is new for each decoding.")
    elif chosen != {now}:
        why = ("That block has the highest mean confidence over its masked positions. "
               + next((text for text, score in WRONG.items() if {best(score)} == chosen), ""))
    teach(False, f"An example that is in block {now} (k = {k}: positions {all_of[now][0]} to "
          f"{all_of[now][-1]}) must commit the positions {right}; yours commits {mine}. {why}")


def captions(solution):
    right = sum(measured(solution.rule).right)
    teach(right >= 0.95 * 64, f"Only {right} of 64 captions decoded with your rule are right.")


CHECKS = [blocks, captions]


def show(solution):
    """The order of the blocks in one caption, and the reader's rule beside two others."""
    images, prompt, window = SOME[1:2]
    trace, order, before = Trace(window), {}, window[0]
    decode(prefilled(MODEL, images, prompt), window, CONFIG, solution.rule, watch=trace)
    for tokens in (record.tokens[0] for record in trace):
        order |= dict.fromkeys(((tokens != before).nonzero()[:, 0] // 16).unique().tolist())
        before = tokens
    yield f"One caption: {in_words(before, before, TOKENIZER)}"
    yield f"Your rule takes its blocks of 16 in this order: {', '.join(map(str, order))}"
    yield "Fully right of 64 captions, passes, and how many captions miss an object:"
    yield f"{'':15s}{'trained weights':>31s}{'weaker weights':>31s}"
    for name, rule in {"confident:0.9": "confident:0.9", "blocks:16": "blocks:16",
                       "yours, k = 16": solution.rule}.items():
        cells = [f"{sum(found.right)} of 64 in {mean(found.passes):.2f}, "
                 f"{found.wrong.count('missing')} missing"
                 for found in (measured(rule, block=block) for block in ("trained", "weak"))]
        yield "{:15s}{:>31s}{:>31s}".format(name, *cells)
    yield "From which end does your rule write, and which mistake becomes rare by it?"
