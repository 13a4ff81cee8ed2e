"""Checks exercise 6: what is kept, when it is exact, and captions decoded with it."""
from types import SimpleNamespace

import torch

from exercises.checks import exercise, scenes, shipped, teach, teach_tensor
from lab.evaluate import decoded, graded
from mini_dimple import confident

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
    return shipped()[0].score(prefix, tokens, causal=False)[0]


def same(a, b):
    return torch.allclose(a, b, atol=1e-3)


def moved(logits, wanted):
    """How far the distributions are from those of a fresh pass, in words."""
    gap = (logits.softmax(-1) - wanted.softmax(-1)).abs().sum(-1) / 2  # (B, W), total variation
    words = "share of the probability that is on other tokens than in a pass from scratch:"
    return f"{words} {gap.mean():.3%} on average over positions, {gap.max():.1%} at most"


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
    print(f"\nstale, 20 tokens committed: {moved(stale, exact(prefix, half))}")


@torch.no_grad()
def check_the_naive_prefix(solution):
    (model, _), prefix, window = shipped(), some_prefix(), scenes(64).windows[:B]
    past = solution.naive_past(model, prefix)
    form(past, prefix.shape[1] - 1, "the naive past")
    before = prefix[:, :-1]
    kept = lambda x, causal: [tensor[:, :, :before.shape[1]]
                              for kv in model.transformer(x, causal)[1] for tensor in kv]
    near = lambda other: all(map(same, (tensor for kv in past for tensor in kv), other))
    teach(not near(kept(before, True)), "You ran the prefix under the causal mask, as one would "
          "for an AR model. In the diffusion phase image and prompt see each other both ways.")
    teach(not near(kept(prefix, False)), "What is kept has seen the last prompt token. Run what "
          "precedes it alone, so that it depends on nothing that comes later.")
    teach(not near(kept(torch.cat([prefix, model.embedding(window)], 1), False)),
          "What is kept has seen the window: that is prefilling as published, not the naive "
          "prefix.")
    teach(near(kept(before, False)),
          "The naive past is not what one pass over the prefix without its last token gives.")
    naive = solution.later_pass(model, prefix[:, -1:], window, past)
    print(f"\nnaive, in the first pass already: {moved(naive, exact(prefix, window))}; prefilling "
          "as published: none")


def check_captions(solution):
    (model, _), some = shipped(), scenes(64)

    def captions(naive):
        def score(prefix, response, causal, past=None):
            if past is None and not naive:
                return solution.first_pass(model, prefix, response)
            past = past or solution.naive_past(model, prefix)
            return solution.later_pass(model, prefix[:, -1:], response, past), past
        passes = SimpleNamespace(config=model.config, embedding=model.embedding,
                                 prefix=model.prefix, score=score)  # all that `prefilled` needs
        return sum(graded(lambda rows: decoded(passes, some[rows], confident(0.9)), some)[0]) / 64
    published, naive = captions(False), captions(True)
    print(f"\nfully right: {published:.1%} with prefilling as published, {naive:.1%} with the "
          "naive prefix")
    teach(published >= 0.95,
          f"With your passes only {published:.1%} of 64 captions are fully right.")


test_exercise = exercise(check_the_first_pass_and_what_it_keeps, check_a_later_pass,
                         check_the_naive_prefix, check_captions)
