"""A decoding as it went: what `decode(..., watch=Trace(window))` notes, as text, and as plain
values for the viewer and for pictures."""
import itertools
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F

from mini_dimple import decode, exclude

MASK, EOS = "_", "<eos>"  # how a trace shows them


class Record(NamedTuple):
    """What one iteration did: (B, W) each, or (B, W, 10); of the window after it."""
    tokens: torch.Tensor        # ids after it
    proposal: torch.Tensor      # ids that the rule went by
    confidence: torch.Tensor    # their probabilities
    words: torch.Tensor         # the ten likeliest ids of each position, as the model has them
    probs: torch.Tensor         # and their probabilities
    by_rule: torch.Tensor       # bool: committed, or written otherwise, as the rule said
    at_least_one: torch.Tensor  # bool: committed as the most confident, as the rule said none
    by_limit: torch.Tensor      # bool: committed because the limit was reached
    taken_back: torch.Tensor    # bool: [MASK] again
    passes: int                 # runs of the model, the rule's own looks included; or (B,)
    computed: int               # positions that they computed, if a Trace knows

    @classmethod
    def of(cls, step, before, tokens, computed=0):
        """The record of a step that turned the window `before` (B, W) into `tokens` (B, W')."""
        fit = lambda x, value=0: F.pad(
            x, (0, 0) * (x.dim() - 2) + (0, tokens.shape[1] - x.shape[1]), value=value)
        unfinished = (before == step.mask_id).any(1, keepdim=True)
        probs, words = exclude(step.raw_logits, step.mask_id).softmax(-1).topk(10)
        before, last = fit(before, step.mask_id), step.iteration + 1 == step.limit
        written = (tokens != before) & (tokens != step.mask_id) & unfinished
        fallback = fit(step.at_least_one) & written
        return cls(tokens, fit(step.proposal), fit(step.confidence), fit(words), fit(probs),
                   written & ~fallback & (not last), fallback & (not last), written & last,
                   (tokens == step.mask_id) & (before != step.mask_id), step.passes, computed)


NOTHING_NAMED = ("the rule named no position in any iteration, so each committed the most "
                 "confident one; if that is not meant, look for NaN, which exceeds no threshold")


class Trace(list):
    """A list of Records, one per iteration of the decoding of a window (B, W), filled by
    `decode(..., watch=trace)`. `positions`: the list of `counting`, for their `computed`."""

    def __init__(self, window, positions=()):
        self.window, self.positions = window, positions

    def __call__(self, step, tokens):
        before = self[-1].tokens if self else self.window
        computed = sum(self.positions) - sum(record.computed for record in self)
        self.append(Record.of(step, before, tokens, computed))

    def names_nothing(self):
        """Whether all of several iterations committed what the rule had not named."""
        return len(self) > 1 and not any((record.by_rule | record.taken_back).any()
                                         for record in self)


@contextmanager
def counting(model):
    """Inside, the model's transformer notes how many positions each of its calls computes, in the
    list that this gives."""
    positions, inside = [], model.transformer

    def transformer(x, *rest, **options):
        positions.append(x.shape[1])
        return inside(x, *rest, **options)
    model.transformer = transformer
    try:
        yield positions
    finally:
        del model.transformer  # the class's own again


def follow(model, look, window, rule, temperature, seed):
    """`decode` of one example, its window (1, W), with the random numbers of a seed -> Decoded, and
    what it did, a Trace that knows the positions computed."""
    torch.manual_seed(seed)  # a rule may draw random numbers
    generator = torch.Generator(window.device).manual_seed(seed)
    with counting(model) as positions:
        trace = Trace(window, positions)
        return decode(look, window, model.config, rule, temperature, generator,
                      watch=trace), trace


def label(token, tokenizer):
    """A token as a trace shows it."""
    if token in (tokenizer.mask_id, tokenizer.eos_id):
        return MASK if token == tokenizer.mask_id else EOS
    # a part of a character as its bytes: \xc3
    return tokenizer.bytes[token].decode("utf-8", "backslashreplace").strip()


def show(tokens, before, tokenizer):
    """A window (W,) as text: words in place, what changed since `before` in [brackets], masks as _,
    equal neighbours counted."""
    olds = before[:len(tokens)].tolist()  # what the window grew by is new
    cells = [(label(token, tokenizer), token != old)
             for token, old in itertools.zip_longest(tokens.tolist(), olds)]
    words = []
    for (text, new), equals in itertools.groupby(cells):
        n = len(list(equals))
        parts = [f"{text}*{n}"] if n > 1 and text in (MASK, EOS) else [text] * n
        words += [f"[{part}]" if new else part for part in parts]
    return " ".join(words)


def told(title, window, trace, tokenizer, **more):
    """A decoding of one example, its window (W,) before the first iteration and its Trace, as plain
    values: a run of docs/viewer.md. `more`: its other entries (caption, grade)."""
    text = lambda token: None if token == tokenizer.mask_id else label(token, tokenizer)
    iterations = []
    for record in trace:
        why = [None] * record.tokens.shape[1]
        for reason, where in (("rule", record.by_rule), ("at least one", record.at_least_one),
                              ("limit", record.by_limit), ("taken back", record.taken_back)):
            for i in where[0].nonzero()[:, 0].tolist():
                why[i] = reason
        likeliest = [[[text(word), round(p, 4)] for word, p in zip(words, probs) if p >= 5e-5]
                     for words, probs in zip(record.words[0].tolist(), record.probs[0].tolist())]
        iterations.append(dict(
            tokens=[text(token) for token in record.tokens[0].tolist()], why=why,
            confidence=[round(p, 4) for p in record.confidence[0].tolist()], likeliest=likeliest,
            passes=int(record.passes), tokens_computed=record.computed or None))
    return dict(title=title, **more, window=[text(token) for token in window.tolist()],
                iterations=iterations)
