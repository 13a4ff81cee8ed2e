"""Checks exercise 6: what is kept, when it is exact, and captions decoded with it."""
import functools
from types import SimpleNamespace
from typing import NamedTuple

import torch

from exercises.checks import count_right, exercise, scenes, shipped, teach, teach_tensor
from lab.evaluate import decoded, graded
from mini_dimple import confident, exclude

__all__ = ["test_exercise"]
B = 8


@torch.no_grad()
def some_prefix():
    """-> embeddings of [visual tokens][prompt] of the first scenes, (B, V + P, D)."""
    return shipped()[0].prefix(*scenes(64)[:B][:2])


def form(past, P, what):
    """Fail unless `past` is a list of (keys, values) of P positions for each layer; P is V + P - 1
    of the exercise."""
    config, W = shipped()[0].config, scenes(64).windows.shape[1]
    teach(isinstance(past, (list, tuple)) and len(past) == config.layers
          and all(len(kv) == 2 for kv in past),
          f"{what} must be a list with one (keys, values) for each of the {config.layers} layers.")
    for tensor in (tensor for kv in past for tensor in kv):
        teach(isinstance(tensor, torch.Tensor) and tensor.dim() == 4,
              f"{what} must hold tensors of four dimensions, (B, nh, positions, hd).")
        n = tensor.shape[2]
        teach(n != P + 1,
              f"{what} keeps the last prompt token, too. It is fed again in each pass (the shift "
              "needs it), so every later pass would see it twice: keep what precedes it.")
        teach(n != P + 1 + W, f"{what} keeps the window, too. Later passes would see the new "
              "window and the old, all [MASK]: keep the prefix only.")
        shape = len(tensor), config.heads, P, config.width // config.heads
        teach_tensor(tensor, shape, torch.float32, f"each tensor of {what}")


def exact(prefix, tokens):
    return shipped()[0].logits(prefix, tokens, causal=False)[0]


def same(a, b):
    return torch.allclose(a, b, atol=1e-3)


def moved(logits, wanted):
    """How far the distributions are from `wanted`, those of a pass from scratch: the share of the
    probability that is on other tokens (B, W), total variation."""
    return (logits.softmax(-1) - wanted.softmax(-1)).abs().sum(-1) / 2


@torch.no_grad()
def check_the_first_pass_and_what_it_keeps(solution):
    (model, _), prefix, window = shipped(), some_prefix(), scenes(64).windows[:B]
    answer = solution.first_pass(model, prefix, window)
    teach(isinstance(answer, tuple) and len(answer) == 2, "first_pass must return logits and past.")
    logits, past = answer
    teach_tensor(logits, (*window.shape, model.config.vocab_size), torch.float32, "logits")
    hidden = model.transformer(torch.cat([prefix, model.embedding(window)], 1), False)[0]
    teach(not same(logits, model.head(hidden[:, -window.shape[1]:])), "The shift is missing: a "
          "token's logits stand one position before it; the first one's at the last prompt token.")
    teach(same(logits, exact(prefix, window)), "The logits of the first pass are not those of a "
          "plain pass over prefix and window, in full attention.")
    form(past, prefix.shape[1] - 1, "past")


@torch.no_grad()
def check_a_later_pass(solution):
    (model, _), prefix, window = shipped(), some_prefix(), scenes(64).windows[:B]
    logits, past = solution.first_pass(model, prefix, window)
    form(past, prefix.shape[1] - 1, "past")
    again = solution.later_pass(model, prefix[:, -1:], window, past)
    teach_tensor(again, logits.shape, torch.float32, "the logits of later_pass")
    teach(same(again, logits), "Nothing was committed, so nothing can be stale, and yet later_pass "
          "gives other logits than first_pass did. Does it feed [last prompt token][window], hand "
          "in the past, and read the logits one position before each token?")
    half = torch.where(torch.arange(window.shape[1]) < 20, scenes(64).responses[:B], window)
    stale = solution.later_pass(model, prefix[:, -1:], half, past)
    teach(not same(stale, exact(prefix, half)), "After commits later_pass is exact still: it seems "
          "to run the prefix anew. Then nothing is saved; use the past that it is given.")


@torch.no_grad()
def check_the_prefix_alone(solution):
    (model, _), prefix, window = shipped(), some_prefix(), scenes(64).windows[:B]
    before = prefix[:, :-1]
    kept = lambda x, causal: [tensor[:, :, :before.shape[1]]
                              for kv in model.transformer(x, causal)[1] for tensor in kv]
    for causal in (False, True):
        past = solution.lone_past(model, prefix, causal)
        form(past, prefix.shape[1] - 1, f"lone_past with causal={causal}")
        near = lambda other: all(map(same, (tensor for kv in past for tensor in kv), other))
        teach(not near(kept(before, not causal)), f"lone_past with causal={causal} gives what it "
              f"should give with causal={not causal}: hand `causal` on to the transformer.")
        teach(causal or not near(kept(prefix, causal)), "What is kept has seen the last prompt "
              "token. Run what precedes it alone, so that it depends on nothing that comes later.")
        teach(not near(kept(torch.cat([prefix, model.embedding(window)], 1), False)), "What is "
              "kept has seen the window: that is prefilling as published, not the prefix alone.")
        teach(near(kept(before, causal)), f"lone_past with causal={causal} is not what one pass "
              "over the prefix without its last token gives.")


class Row(NamedTuple):
    """What a kind of prefix does."""
    prefix: str
    off: str    # in the first pass
    right: int  # of 64 captions, by the diffusion weights
    ar: str     # by the AR weights, left to right


@functools.cache
@torch.no_grad()
def rows(solution):
    """The kinds of prefix, measured with the student's functions -> Rows."""
    (model, _), (ar, _), some = shipped(), shipped("ar"), scenes(64)
    V = model.prefix(*some[:1][:2]).shape[1] - some.prompts.shape[1]

    def picture_first(model, prefix):
        """The picture in full attention, then the prompt's tokens one after the other."""
        _, past = model.transformer(prefix[:, :V], False)
        for i in range(V, prefix.shape[1] - 1):
            _, past = model.transformer(prefix[:, i:i + 1], False, past)
        return past
    alone = lambda causal: lambda model, prefix: solution.lone_past(model, prefix, causal)

    def of(name, make):
        """make(model, prefix) -> past; None: prefilling as published."""
        def logits_of(prefix, response, causal, past=None):
            if past is None and make is None:
                return solution.first_pass(model, prefix, response)
            past = past or make(model, prefix)
            return solution.later_pass(model, prefix[:, -1:], response, past), past
        passes = SimpleNamespace(  # all that `prefilled` needs
            config=model.config, embedding=model.embedding, prefix=model.prefix, logits=logits_of)
        right = sum(graded(lambda rows: decoded(passes, some[rows], confident(0.9)), some)[0])
        prefix = model.prefix(*some[:][:2])
        off = moved(logits_of(prefix, some.windows, False)[0], exact(prefix, some.windows)).mean()
        return Row(name, f"{off:.1%}", right, str(left_to_right(ar, some, make)) if make else "")
    return [of("as published", None), of("alone, full attention", alone(False)),
            of("alone, causal", alone(True)), of("picture full, prompt causal", picture_first)]


def left_to_right(model, some, make):
    """Greedy decoding of the AR weights from a kept prefix -> how many captions are right."""
    prefix = model.prefix(*some[:][:2])
    past, x, tokens = make(model, prefix), prefix[:, -1:], []
    for _ in range(some.windows.shape[1]):
        hidden, past = model.transformer(x, True, past)
        tokens.append(exclude(model.head(hidden[:, -1]), model.config.mask_id).argmax(-1))
        x = model.embedding(tokens[-1][:, None])
    texts = [some.tokenizer.decode(ids[:(ids + [model.config.eos_id]).index(model.config.eos_id)])
             for ids in torch.stack(tokens, 1).tolist()]
    return count_right(texts)


def in_words(found):
    return "\n".join(["prefix                        off in the first pass   diffusion weights   "
                      "AR weights, left to right",
                      *(f"{row.prefix:29s} {row.off:>21s} {row.right:>10d} of 64 {row.ar:>27s}"
                        .rstrip() for row in found)])


def check_captions(solution):
    why = getattr(solution, "WHY", None)
    teach(why in (None, "a", "b", "c"), f"WHY is {why!r}; write \"a\", \"b\" or \"c\".")
    published, full, causal, _ = found = rows(solution)
    teach(published.right >= 0.95 * 64, f"With your passes only {published.right} of 64 captions "
          "are right, prefilling as published.")
    teach(why is not None, f"Captions fully right, by the prefix that is kept:\n{in_words(found)}\n"
          "The prefix under the causal mask ruins four of five captions of the diffusion weights. "
          "Why? Write a letter for WHY.")
    teach(why != "a", f"WHY: in the first pass nothing is committed yet, so nothing is stale, and "
          f"{causal.off} of the probability is on other tokens already.")
    teach(why != "b", f"WHY: neither has the prefix that ran alone in full attention, and with "
          "that "
          f"one {full.right} of 64 captions are right.")


@torch.no_grad()
def show(solution):
    """The kinds of prefix, and how stale the published one gets."""
    some, lines = scenes(64), []
    half = torch.where(torch.arange(some.windows.shape[1]) < 20, some.responses, some.windows)
    for phase, name in (("diffusion", "trained"), ("weak", "weaker")):
        model = shipped(phase)[0]
        prefix = model.prefix(*some[:][:2])
        _, past = solution.first_pass(model, prefix, some.windows)
        stale = moved(solution.later_pass(model, prefix[:, -1:], half, past),
                      model.logits(prefix, half, False)[0])[half == model.config.mask_id]
        lines.append(f"As published, once 20 tokens are committed, {name} weights: off by "
                     f"{stale.mean():.1%} at a masked position, {stale.max():.0%} at most.")
    return "\n".join([
        "Captions fully right by the prefix that is kept (off: share of the probability that is on "
        "other tokens):", in_words(rows(solution)), *lines,
        "What would have to change in training for the prefix alone to be exact? "
        "(train.py --variant prefix-mask)"])


test_exercise = exercise(check_the_first_pass_and_what_it_keeps, check_a_later_pass,
                         check_the_prefix_alone, check_captions, show=show)
