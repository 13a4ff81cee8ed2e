"""Checks exercise 6: what is kept, when it is exact, and captions decoded with it."""
import functools
from types import SimpleNamespace

import torch

from exercises.checks import (CONFIG, MODEL, SOME, Lesson, ask, compare, shipped, teach,
                              teach_tensor, teach_tuple)
from lab.evaluate import decoded, graded
from mini_dimple import confident, decode_ar

AR = shipped("ar")[0]
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


@torch.no_grad()
def the_first_pass_and_a_later_one(solution):
    answer = ask(solution.first_pass, MODEL, PREFIX[:B], WINDOW)
    logits, past = teach_tuple(answer, "logits", "past")
    teach_tensor(logits, (B, W, CONFIG.vocab_size), torch.float32, "logits")
    as_tensor(past, "past")
    x = torch.cat([PREFIX[:B], MODEL.embedding(WINDOW)], 1)
    compare(logits, MODEL.logits(PREFIX[:B], WINDOW, False)[0], {
        "The shift is missing: a token's logits stand one position before it.":
            MODEL.head(MODEL.transformer(x, False)[0][:, -W:])},
        "The logits of first_pass are not those of a pass in full attention. ")
    later = ask(solution.later_pass, MODEL, PREFIX[:B, -1:], WINDOW, past)
    teach_tensor(later, logits.shape, torch.float32, "the logits of later_pass")
    compare(later, logits, {}, "Nothing was committed, nothing can be stale, and yet "
            "later_pass gives other logits than first_pass did. Does it feed [last prompt token]"
            "[window], hand in the past, and read the logits one position before each token?")


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
            f"lone_past with causal={causal} is not what a pass over that prefix gives. ")


def moved(logits, wanted):
    """How far the distributions are from `wanted`, those of a pass from scratch: the share of the
    probability that is on other tokens (B, W), total variation."""
    return (logits.softmax(-1) - wanted.softmax(-1)).abs().sum(-1) / 2


def picture_first(_, model, prefix):
    """The picture in full attention, then the prompt's tokens one after the other."""
    V = prefix.shape[1] - SOME.prompts.shape[1]
    _, past = model.transformer(prefix[:, :V], False)
    for i in range(V, prefix.shape[1] - 1):
        _, past = model.transformer(prefix[:, i:i + 1], False, past)
    return past


KINDS = {  # of prefix, by their names: (solution, model, prefix) -> past
    "as published": lambda solution, model, prefix: solution.first_pass(
        model, prefix, SOME.windows[:len(prefix)])[1],
    "alone, full attention": lambda solution, *given: solution.lone_past(*given, False),
    "alone, causal": lambda solution, *given: solution.lone_past(*given, True),
    "picture full, prompt causal": picture_first}


@functools.cache
@torch.no_grad()
def measured(solution, kind):
    """-> how far off the first pass is with this kind of prefix, how many captions are right."""
    def logits(prefix, response, causal, past=None):
        past = past or KINDS[kind](solution, MODEL, prefix)
        return solution.later_pass(MODEL, prefix[:, -1:], response, past), past
    model = SimpleNamespace(config=CONFIG, prefix=MODEL.prefix, logits=logits)
    off = moved(logits(PREFIX, SOME.windows, False)[0],
                MODEL.logits(PREFIX, SOME.windows, False)[0]).mean()
    found = graded(lambda rows: decoded(model, SOME[rows], confident(0.9)), SOME)
    return f"{off:.1%}", sum(found.right)


@torch.no_grad()
def left_to_right(solution, kind):
    """-> how many captions of the AR weights are right with this kind of prefix."""
    def transformer(x, causal, past=None):
        if past is None:
            past, x = KINDS[kind](solution, AR, x), x[:, -1:]
        return AR.transformer(x, causal, past)
    model = SimpleNamespace(config=CONFIG, prefix=AR.prefix, embedding=AR.embedding, head=AR.head,
                            transformer=transformer)
    return sum(graded(lambda rows: decode_ar(model, *SOME[rows][:2], W), SOME).right)


def table(solution):
    lines = ["prefix".ljust(30) + "off in the first pass   diffusion weights   "
             "AR weights, left to right"]
    for kind in KINDS:
        off, right = measured(solution, kind)
        ar = "" if kind == "as published" else left_to_right(solution, kind)
        lines.append(f"{kind:29s} {off:>21s} {right:>10d} of 64 {ar:>27}".rstrip())
    return "\n".join(lines)


def captions(solution):
    right = measured(solution, "as published")[1]
    teach(right >= 0.95 * 64, f"With your passes {right} of 64 captions are right, prefilling as "
          "published.")
    why = {
        None: lambda: f"Captions fully right, by the prefix that is kept:\n{table(solution)}\n"
            "Under the causal mask it ruins four of five captions of the diffusion weights. Why? "
            "Write a letter for WHY.",
        "a": lambda: "WHY: in the first pass nothing is committed yet, so nothing is stale, and "
            f"{measured(solution, 'alone, causal')[0]} of the probability is on other tokens.",
        "b": lambda: "WHY: neither has the prefix that ran alone in full attention, and with that "
            f"one {measured(solution, 'alone, full attention')[1]} of 64 captions are right."}
    if solution.WHY != "c":
        raise Lesson(why.get(solution.WHY, lambda: 'WHY must be "a", "b" or "c".')())


CHECKS = [the_first_pass_and_a_later_one, the_prefix_alone, captions]


@torch.no_grad()
def show(solution):
    """The kinds of prefix, and how stale the published one gets."""
    yield ("Captions fully right by the prefix that is kept (off: share of the probability that is "
           "on other tokens):")
    yield table(solution)
    for model, name in ((MODEL, "trained"), (shipped("weak")[0], "weaker")):
        prefix = model.prefix(*SOME[:][:2])
        _, past = solution.first_pass(model, prefix, SOME.windows)
        stale = moved(solution.later_pass(model, prefix[:, -1:], HALF, past),
                      model.logits(prefix, HALF, False)[0])[HALF == CONFIG.mask_id]
        yield (f"As published, once 20 tokens are committed, {name} weights: off by "
               f"{stale.mean():.1%} at a masked position, {stale.max():.0%} at most.")
    yield ("What would have to change in training for the prefix alone to be exact? "
           "(train.py --variant prefix-mask)")
