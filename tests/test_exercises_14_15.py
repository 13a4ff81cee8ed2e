"""The checkers of exercises 14 and 15: mistakes and right answers, as in test_exercises.py."""
import pytest

from test_exercises import assert_lesson, assert_passes, failure

MISTAKES = [  # exercise, what is changed in the answer, and into what; the lesson
    ("14", "longest + 1", "longest", "excludes its upper end"),
    ("14", "responses)) + 1", "responses))", "leaves no EOS"),
    ("14", "responses)) + 1", "responses)) + 2", "never is the shortest"),
    ("14", "int(torch.randint(shortest, longest + 1, (), generator=generator))",
     "longest", "always has 12 tokens"),
    ("14", "int(torch.randint(shortest, longest + 1, (), generator=generator))",
     "max(shortest, int(torch.randint(1, longest + 1, (), generator=generator)))",
     "about equally often"),
    ("14", ", generator=generator)", ")", "with the generator that you were given"),
    ("14", "ids + [eos_id] * (W - len(ids))", "[eos_id] * (W - len(ids)) + ids",
     "behind the response, not before"),
    ("14", "    return torch.tensor([ids + [eos_id] * (W - len(ids)) for ids in "
     "responses])", "    for ids in responses:\n        ids += [eos_id] * (W - len(ids))\n"
     "    return torch.tensor(responses)", "has written into the responses"),
    ("14", "return 1 - lengths.double().mean().item() / W",
     "return lengths.double().mean().item() / W", "share of the words; EOS is the rest"),
    ("14", "return 1 - lengths.double().mean().item() / W",
     "return 1 - (lengths.double().mean().item() + 1) / W", "ends a response is one"),
    ("14", "return 1 - lengths.double().mean().item() / W",
     "return W / lengths.double().mean().item() - 1", "EOS for each word"),
    ("14", "lengths.double().mean()", "lengths.double().max()", "the longest response"),
    ("14", "mean().item() / W", "mean() / W", "must return a float, not Tensor"),
    ("14", "if step.tokens.shape[1] > longest:", "if step.iteration == 0:",
     "go straight on there"),
    ("14", "return step.confidence > 0.9", "return step.confidence > 0.5",
     "should decode as|go straight on there"),
    ("14", "return step.tokens[:, :longest]",
     "return torch.where(torch.arange(step.tokens.shape[1]) < longest,\n"
     "                           step.commit(step.confidence > 0.9), step.eos_id)",
     "EOS from 48 on, and as long as before"),
    ("14", "return step.tokens[:, :longest]", "pass", "stays as long as it is"),
    ("14", "return step.tokens[:, :longest]",
     "return step.commit(step.confidence > 0.9)[:, :longest]", "commits by what it found there"),
    ("14", "return step.tokens[:, :longest]", "return step.tokens[:, :longest - 16]",
     "long enough for any answer"),
    ("15", "commit.scatter(1, open_choices.argmax(1, keepdim=True), True)", "commit",
     "exact: .*One open choice may go with all that is sure"),
    ("15", "sure=0.6", "sure=0.3", "exact: .*committed together they mix"),
    ("15", "(now < doubtful) & (times < most)", "(now < 2)", "does not end by itself"),
    ("15", "    now = ", "    step.look(window)\n    now = ",
     "exact: .*more than 6.*step.look is a pass"),
    ("15", "doubtful=0.1", "doubtful=-1.0", "trained: .*odds waver"),
    ("15", "sure=0.6, doubtful=0.1", "sure=0.9, doubtful=-1.0",  # exercise 5's answer
     "weak: .*What has become improbable can be taken back"),
]


@pytest.mark.parametrize("start, old, new, lesson", [
    pytest.param(*one, marks=[pytest.mark.slow] if one[0] == "15" or "return s" in one[1]
                 or one[1].startswith("if") else []) for one in MISTAKES])
def test_a_well_known_mistake_fails_with_its_lesson(start, old, new, lesson):
    assert_lesson(start, old, new, lesson)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["remask:0.5", "remask:0.52", "remask:0.6", "eb_sampler:0.5",
                                  "confident:0.9"])
def test_no_rule_of_the_gallery_passes_exercise_15(rule):
    source = f"from rules import resolve\nrule = resolve({rule!r})\n"
    assert failure(source + "from exercises.checks.three_models import *")


OTHERS = {  # right answers that are not like ours
    "14": ["""
import random
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
def pad(responses, longest, eos_id, generator):
    rows = pad_sequence([torch.tensor([*ids, eos_id]) for ids in responses], True, eos_id)
    more = torch.rand((), generator=generator) * (longest - rows.shape[1] + 1)
    return F.pad(rows, (0, int(more)), value=eos_id)
def eos_share(lengths, W):
    return sum(W - n for n in lengths.tolist()) / (len(lengths) * W)
def rule(step, longest=48):
    if step.tokens.shape[1] > longest:
        step.tokens = step.tokens[:, :longest]
        step.masked = step.tokens == step.mask_id
        step.rescore(step.look(step.tokens))
    return step.commit(step.confidence > 0.9)
""", """
import torch
import torch.nn.functional as F
def pad(responses, longest, eos_id, generator):
    start = max(len(ids) for ids in responses) + 1
    W = start + torch.randperm(longest + 1 - start, generator=generator)[0].item()
    out = torch.full((len(responses), W), eos_id)
    for b, ids in enumerate(responses):
        out[b, :len(ids)] = torch.tensor(ids)
    return out
def eos_share(lengths, W):
    rows = torch.arange(W) >= lengths[:, None]
    return rows.float().mean().item()
def rule(step, longest=48):
    if step.masked.shape[1] > 40 and step.masked.shape[1] != longest:
        return step.tokens[:, :40]  # an answer needs 39
    return step.confidence > 0.9
"""],
    "15": ["""
def rule(step):
    window = step.tokens.clone()
    for b in range(len(window)):
        free = [i for i in range(window.shape[1]) if step.masked[b, i]]
        sure = [i for i in free if step.confidence[b, i] > 0.65]
        rest = [i for i in free if i not in sure]
        if rest:
            sure.append(max(rest, key=lambda i: step.confidence[b, i].item()))
        window[b, sure] = step.proposal[b, sure]
        if step.iteration < 8:
            for i in range(window.shape[1]):
                if not step.masked[b, i] and step.probs[b, i, step.tokens[b, i]] < 0.1:
                    window[b, i] = step.mask_id
    return window
""", """
import torch
def rule(step):
    surest, order = step.confidence.masked_fill(~step.masked, -1).sort(
        dim=1, descending=True, stable=True)
    n = (surest > 0.62).sum(1, keepdim=True)  # and the one after them
    commit = torch.zeros_like(step.masked).scatter(1, order, torch.arange(len(order[0])) <= n)
    window = step.commit(commit)
    stands = step.probs.gather(-1, step.tokens[..., None]).squeeze(-1)
    if step.iteration < 8:
        window[~step.masked & ~step.given & (stands < 0.2)] = step.mask_id
    return window
"""],
}


@pytest.mark.slow
@pytest.mark.parametrize("start, source", [
    (start, source) for start, sources in OTHERS.items() for source in sources])
def test_any_right_answer_passes(start, source):
    assert_passes(start, source)
