"""Checks exercise 6: what is kept, when it is exact, and captions decoded with it."""
import functools
from types import SimpleNamespace

import torch

from exercises.checks import ask, compare, scenes, shipped, teach, teach_tensor, teach_tuple
from lab.evaluate import decoded, graded
from mini_dimple import confident, decode_ar

MODEL, AR, SOME = shipped()[0], shipped("ar")[0], scenes()
CONFIG = MODEL.config
B, W = 8, CONFIG.window
WINDOW = SOME.windows[:B]
HALF = torch.where(torch.arange(W) < 20, SOME.responses, SOME.windows)  # 20 tokens are committed
PREFIX = MODEL.prefix(*SOME[:][:2]).detach()  # [visual tokens][prompt], (64, V + P, D)
BEFORE = PREFIX[:B, :-1]  # what precedes the last prompt token


def as_tensor(past, what):
    """-> what is kept, (2 * layers, B, nh, V + P - 1, hd), its form checked."""
    teach(isinstance(past, (list, tuple)) and [len(kv) for kv in past] == [2] * CONFIG.layers,
          f"{what} must be a list with one (keys, values) for each of the {CONFIG.layers} layers.")
    tensors = [tensor for kv in past for tensor in kv]
    shape = B, CONFIG.heads, BEFORE.shape[1], CONFIG.width // CONFIG.heads
    for tensor in tensors:
        teach_tensor(tensor, shape, torch.float32, f"each tensor of {what} (all of the prefix but "
                     "the last prompt token, which every later pass is fed again; no window)")
    return torch.stack(tensors)


def first(solution):
    logits, past = teach_tuple(ask(solution.first_pass, MODEL, PREFIX[:B], WINDOW), "logits", "past")
    teach_tensor(logits, (B, W, CONFIG.vocab_size), torch.float32, "logits")
    as_tensor(past, "past")
    return logits, past


@torch.no_grad()
def the_first_pass(solution):
    x = torch.cat([PREFIX[:B], MODEL.embedding(WINDOW)], 1)
    compare(first(solution)[0], MODEL.logits(PREFIX[:B], WINDOW, False)[0], {
        "The shift is missing: a token's logits stand one position before it, those of the first "
        "token at the last prompt token.": MODEL.head(MODEL.transformer(x, False)[0][:, -W:])},
        "The logits of first_pass are not those of a pass in full attention. ")


@torch.no_grad()
def a_later_pass(solution):
    logits, past = first(solution)
    later = lambda tokens: ask(solution.later_pass, MODEL, PREFIX[:B, -1:], tokens, past)
    teach_tensor(later(WINDOW), logits.shape, torch.float32, "the logits of later_pass")
    compare(later(WINDOW), logits, {}, "Nothing was committed, so nothing can be stale, and yet "
            "later_pass gives other logits than first_pass did. Does it feed [last prompt token]"
            "[window], hand in the past, and read the logits one position before each token?")
    fresh = MODEL.logits(PREFIX[:B], HALF[:B], False)[0]
    teach(not torch.allclose(later(HALF[:B]), fresh, atol=1e-3), "After commits later_pass is exact "
          "still: it seems to run the prefix anew. Then nothing is saved; use the past.")


@torch.no_grad()
def the_prefix_alone(solution):
    kept = lambda x, causal: torch.stack([
        tensor[:, :, :BEFORE.shape[1]] for kv in MODEL.transformer(x, causal)[1] for tensor in kv])
    for causal in (False, True):
        past = as_tensor(ask(solution.lone_past, MODEL, PREFIX[:B], causal), "lone_past")
        compare(past, kept(BEFORE, causal), {
            "Hand `causal` on to the transformer.": kept(BEFORE, not causal),
            "It has seen the last prompt token. Run what precedes that one alone.":
                kept(PREFIX[:B], causal)},
            f"lone_past with causal={causal} is not what one pass over the prefix without its last "
            "token gives. ")


def moved(logits, wanted):
    """How far the distributions are from `wanted`, those of a pass from scratch: the share of the
    probability that is on other tokens (B, W), total variation."""
    return (logits.softmax(-1) - wanted.softmax(-1)).abs().sum(-1) / 2


def row(solution, make):
    """A kind of prefix, make(model, prefix) -> past, or None: as published -> how far off the first
    pass is; how many captions are right, and how many of the AR weights, left to right."""
    def logits_of(prefix, response, causal, past=None):
        if past is None and make is None:
            return solution.first_pass(MODEL, prefix, response)
        past = past or make(MODEL, prefix)
        return solution.later_pass(MODEL, prefix[:, -1:], response, past), past

    def transformer(x, causal, past=None):
        if past is None:
            past, x = make(AR, x), x[:, -1:]
        return AR.transformer(x, causal, past)
    diffusion = SimpleNamespace(config=CONFIG, prefix=MODEL.prefix, logits=logits_of)
    ar = SimpleNamespace(config=CONFIG, prefix=AR.prefix, embedding=AR.embedding, head=AR.head,
                         transformer=transformer)
    right = lambda way: sum(graded(way, SOME).right)
    off = moved(logits_of(PREFIX, SOME.windows, False)[0],
                MODEL.logits(PREFIX, SOME.windows, False)[0]).mean()
    return (f"{off:.1%}", right(lambda rows: decoded(diffusion, SOME[rows], confident(0.9))),
            right(lambda rows: decode_ar(ar, *SOME[rows][:2], W)) if make else "")


@functools.cache
@torch.no_grad()
def measured(solution):
    """The kinds of prefix by their names, made by the reader's functions: `row` of each."""
    def picture_first(model, prefix):
        """The picture in full attention, then the prompt's tokens one after the other."""
        V = prefix.shape[1] - SOME.prompts.shape[1]
        _, past = model.transformer(prefix[:, :V], False)
        for i in range(V, prefix.shape[1] - 1):
            _, past = model.transformer(prefix[:, i:i + 1], False, past)
        return past
    alone = lambda causal: lambda model, prefix: solution.lone_past(model, prefix, causal)
    makers = {"as published": None, "alone, full attention": alone(False),
              "alone, causal": alone(True), "picture full, prompt causal": picture_first}
    return {name: row(solution, make) for name, make in makers.items()}


def table(solution):
    head = ("prefix                        off in the first pass   diffusion weights   AR weights, "
            "left to right")
    return "\n".join([head, *("{:29s} {:>21s} {:>10d} of 64 {:>27}".format(name, *cells).rstrip()
                              for name, cells in measured(solution).items())])


def captions(solution):
    right = {name: cells[1] for name, cells in measured(solution).items()}
    teach(right["as published"] >= 0.95 * 64, f"With your passes only {right['as published']} of 64 "
          "captions are right, prefilling as published.")
    why = {None: f"Captions fully right, by the prefix that is kept:\n{table(solution)}\nThe prefix "
                 "under the causal mask ruins four of five captions of the diffusion weights. Why? "
                 "Write a letter for WHY.",
           "a": "WHY: in the first pass nothing is committed yet, so nothing is stale, and "
                f"{measured(solution)['alone, causal'][0]} of the probability is on other tokens.",
           "b": "WHY: neither has the prefix that ran alone in full attention, and with that one "
                f"{right['alone, full attention']} of 64 captions are right."}
    teach(solution.WHY == "c", why.get(solution.WHY, "WHY must be \"a\", \"b\" or \"c\"."))


CHECKS = [the_first_pass, a_later_pass, the_prefix_alone, captions]


@torch.no_grad()
def show(solution):
    """The kinds of prefix, and how stale the published one gets."""
    lines = []
    for model, name in ((MODEL, "trained"), (shipped("weak")[0], "weaker")):
        prefix = model.prefix(*SOME[:][:2])
        _, past = solution.first_pass(model, prefix, SOME.windows)
        stale = moved(solution.later_pass(model, prefix[:, -1:], HALF, past),
                      model.logits(prefix, HALF, False)[0])[HALF == CONFIG.mask_id]
        lines.append(f"As published, once 20 tokens are committed, {name} weights: off by "
                     f"{stale.mean():.1%} at a masked position, {stale.max():.0%} at most.")
    return "\n".join([
        "Captions fully right by the prefix that is kept (off: share of the probability that is on "
        "other tokens):", table(solution), *lines,
        "What would have to change in training for the prefix alone to be exact? "
        "(train.py --variant prefix-mask)"])
