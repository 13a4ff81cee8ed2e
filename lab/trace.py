"""A decoding as it went: what `decode(..., watch=Trace())` notes, as text and for pictures."""
import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lab.drawing import EOS, Cell, Panel

MASK = "_"  # how a trace shows it


class Record(NamedTuple):
    """What one iteration did: (B, W) each, or (B, W, 3); of the window after it."""
    tokens: torch.Tensor        # ids after it
    proposal: torch.Tensor      # ids that the rule went by
    confidence: torch.Tensor    # their probabilities
    words: torch.Tensor         # the three likeliest ids of each position
    probs: torch.Tensor         # and their probabilities
    by_rule: torch.Tensor       # bool: committed, or written otherwise, as the rule said
    at_least_one: torch.Tensor  # bool: committed as the most confident, as the rule said none
    by_limit: torch.Tensor      # bool: committed because the passes were used up
    taken_back: torch.Tensor    # bool: [MASK] again

    @classmethod
    def of(cls, step, before, tokens, at_limit, top3):
        """The record of a step that turned the window `before` (B, W) into `tokens` (B, W')."""
        fit = lambda x, value=0: F.pad(
            x, (0, 0) * (x.dim() - 2) + (0, tokens.shape[1] - x.shape[1]), value=value)
        unfinished = (before == step.mask_id).any(1, keepdim=True)
        before, (probs, words) = fit(before, step.mask_id), top3
        written = (tokens != before) & (tokens != step.mask_id) & unfinished
        fallback = fit(step.at_least_one) & written
        return cls(tokens, fit(step.proposal), fit(step.confidence), fit(words), fit(probs),
                   written & ~fallback & (not at_limit), fallback & (not at_limit),
                   written & at_limit, (tokens == step.mask_id) & (before != step.mask_id))


class Trace(list):
    """A list of Records, one per iteration, filled by `decode(..., watch=trace)`."""

    def __call__(self, *iteration):
        self.append(Record.of(*iteration))


def label(token, tokenizer):
    """A token as a trace shows it."""
    special = {tokenizer.mask_id: MASK, tokenizer.eos_id: EOS}
    return special.get(token) or tokenizer.decode([token]).strip()


def show(tokens, before, tokenizer):
    """A window (W,) as text: words in place, what changed since `before` in [brackets], masks as _,
    equal neighbours counted."""
    cells = []  # [text, new, times]
    olds = before[:len(tokens)].tolist()  # what the window grew by is new
    for token, old in itertools.zip_longest(tokens.tolist(), olds):
        text, new = label(token, tokenizer), token != old
        if cells and cells[-1][:2] == [text, new] and text in (MASK, EOS):
            cells[-1][2] += 1
        else:
            cells.append([text, new, 1])
    words = [text + (f"*{times}" if times > 1 else "") for text, _, times in cells]
    return " ".join(f"[{word}]" if new else word for word, (_, new, _) in zip(words, cells))


def panel(title, window, trace, tokenizer):
    """One example's window (W,) and its Trace -> what `drawing` shows: the window before the first
    iteration and after each."""
    state = lambda token: "masked" if token == tokenizer.mask_id else "given"
    cells = [Cell(label(token, tokenizer), state(token), 0.0, False) for token in window.tolist()]
    lines = [cells]
    for record in trace:
        before, cells = cells, []
        written = (record.by_rule | record.at_least_one | record.by_limit)[0].tolist()
        confidence, back = record.confidence[0].tolist(), record.taken_back[0].tolist()
        for i, token in enumerate(record.tokens[0].tolist()):
            if written[i]:
                cells.append(Cell(label(token, tokenizer), "committed", confidence[i], True))
            elif token == tokenizer.mask_id:
                cells.append(Cell(MASK, "masked", 0.0, back[i]))
            else:
                cells.append(before[i]._replace(new=False))
        lines.append(cells)
    return Panel(title, lines)
