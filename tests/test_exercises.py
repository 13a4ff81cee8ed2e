"""The checkers in exercises/: the stub fails, well-known mistakes fail with the lesson they need,
any right answer passes."""
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import mini_dimple
from conftest import refused_by
from exercises import __main__ as runner, checks
from lab.__main__ import main

EXERCISES = Path(__file__).parent.parent / "exercises"
NAMES = sorted(path.stem for path in EXERCISES.glob("[0-9]*.py"))


def run(source):
    """Run an exercise's source and the checker that it imports -> whether it passes; the message
    with which it fails, or what it shows."""
    module = types.ModuleType("exercise")
    module.__file__ = "exercise.py"
    exec(compile(source, module.__file__, "exec"), vars(module))
    try:
        return True, module.test_exercise.run(module)
    except pytest.fail.Exception as error:
        assert not error.pytrace, "the lesson alone"
        return False, str(error)


def failure(source):
    """-> the message with which an exercise's source fails, "" if it passes."""
    passes, text = run(source)
    return "" if passes else text


def answer(name):
    return (EXERCISES / "answers" / f"{name}.py").read_text()


def named(start):
    return next(name for name in NAMES if name.startswith(start))


def test_each_exercise_has_a_task_a_checker_and_an_answer():
    assert [int(name[:2]) for name in NAMES] == list(range(1, len(NAMES) + 1))
    for name in NAMES:
        task = (EXERCISES / f"{name}.py").read_text()
        assert task.startswith(f'"""Exercise {int(name[:2])}: ')
        assert re.search("\nPaper: |\nNot part of Dimple: ", task)
        assert f"\nCheck: python -m exercises {int(name[:2])} " in task
        assert f"pytest exercises/{name}.py" in task and "Compare afterwards: " in task
        last = f"from exercises.checks.{name[3:]} import *"
        for source in (task, answer(name)):
            assert source.splitlines()[-1].startswith(last)
    assert {path.stem for path in (EXERCISES / "answers").glob("*.py")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_fails(name):
    message = failure((EXERCISES / f"{name}.py").read_text())
    assert re.search("is not written yet|no guess yet", message)


MISTAKES = [  # exercise, what is changed in the answer, and into what; the lesson
    ("01", "torch.rand(response.shape)", "torch.rand_like(response)",
     "whole numbers.*torch.rand\\(response.shape\\)"),
    ("01", "t[:, None]", "t", "do not line up.*t\\[:, None\\]"),
    ("01", "t[:, None]", "t[:1, None]", "each example has its own t"),
    ("01", "torch.rand(response.shape)", "torch.rand(len(response), 1).expand(response.shape)",
     "Each token draws its own random number"),
    ("01", "torch.rand(response.shape)", "torch.rand(response.shape[1]).expand(response.shape)",
     "All examples have the same mask"),
    ("01", "torch.rand(response.shape) < t[:, None]",
     "torch.rand(response.shape).argsort(1).argsort(1) < (t[:, None] * response.shape[1])",
     "their number varies"),
    ("01", "response.masked_fill(", "response.masked_fill_(", "changed the response"),
    ("01", "< t[:, None]", "> t[:, None]", "That is 1 - t"),
    ("01", "< t[:, None]", "< t[:, None] * (response != mask_id - 1)", "The padding is part of"),
    ("01", "torch.rand(B)", "torch.rand(1).expand(B)", "All levels are the same"),
    ("01", "EPS + (1 - EPS) *", "0 *", "All levels are the same"),
    ("01", "torch.rand(B)", "torch.rand(B) ** 2", "not uniform"),
    ("02", "hidden[:, -W - 1:-1]", "hidden[:, -W:]", "The shift is missing"),
    ("02", "model.head(hidden[:, -W - 1:-1])", "model.head(hidden[:, -W:]).roll(-1, 1)",
     "The shift goes the wrong way"),
    ("02", "model.prefix(images, prompt)",
     "model.prefix(images, torch.full_like(prompt, model.config.mask_id))",
     "You masked the prompt"),
    ("02", "(nll * masked)", "nll", "You averaged over all tokens"),
    ("02", "((nll * masked).sum(1) / t).mean() / W", "nll[masked].mean()",
     "mean over all masked tokens of the batch"),
    ("02", "((nll * masked).sum(1) / t).mean() / W",
     "((nll * masked).sum(1) / masked.sum(1)).mean()", "mean over each example's masked tokens"),
    ("02", "((nll * masked).sum(1) / t).mean() / W", "((nll * masked).sum(1)).mean() / W",
     "The weight 1/t is missing"),
    ("02", ".mean() / W", ".mean()", "Divide by the window length"),
    ("02", "causal=False", "causal=True", "under the causal mask"),
    ("02", "model.embedding(noisy)", "model.embedding(response)", "without its masks"),
    ("02", ".mean() / W", ".mean().detach() / W", "No gradient flows"),
    ("02", "model.head(hidden", "model.head(hidden.detach()", "does not reach the whole model"),
    ("02", "hidden[:, -W - 1:-1]", "hidden[:, -W:].roll(1, 1)",
     "Yours is read from the end of the window"),
    ("02", "(nll * masked).sum(1) / t", "(nll * masked).sum(1, keepdim=True) / t",
     "t was broadcast"),
    ("02", "(nll * masked).sum(1) / t", "(nll * masked).sum(1) / t.mean()", "its own t"),
    ("02", "response.masked_fill(", "response.masked_fill_(", "writes into its arguments"),
    ("02", "hidden, _ = ", "hidden = ", "Line \\d+: .*TypeError"),
    ("02", "/ t).mean() / W", "/ t / masked.any(1)).mean() / W", "It counts 0"),
    ("03", ".triu(1)", ".tril(-1)", "upside down"),
    ("03", ".triu(1)", ".triu(0)", "not finite"),
    ("03", ".triu(1)", ".triu(2)", "sees what follows it"),
    ("03", "if causal:", "if False:", "sees what follows it"),
    ("03", "if causal:", "if not causal:", "are swapped"),
    ("03", " / math.sqrt(q.shape[-1])", " / q.shape[-1]", "divided by hd"),
    ("03", "scores = q @", "scores = q.div_(2) @", "writes into q"),
    ("03", "    T = q.shape[2]",
     "    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)",
     "write it yourself"),
    ("03", "if causal:", "if True:", "With causal=False some positions do not see each other"),
    ("03", "scores = scores.masked_fill(future, -torch.inf)",
     "return scores.softmax(-1).masked_fill(future, 0) @ v", "mask after the softmax"),
    ("03", "scores.masked_fill(future, -torch.inf)", "scores.masked_fill(future, 0)",
     "A score of 0 is no mask"),
    ("03", " / math.sqrt(q.shape[-1])", "", "not divided by sqrt"),
    ("03", "scores.softmax(-1) @ v", "scores.softmax(-2) @ v", "softmax runs over the queries"),
    ("04", "commit.any(1, keepdim=True)", "commit.any()", "must look at ONE row"),
    ("04", "best = torch.zeros_like(commit).scatter(1, top, True) & masked\n"
     "        commit = torch.where(commit.any(1, keepdim=True), commit, best)",
     "if not commit.any():\n            commit.view(-1)[confidence.argmax()] = True", "row by row"),
    ("04", "confidence.argmax(1, keepdim=True)",
     "confidence.amax(1).argmax().expand(len(commit), 1).clamp(max=commit.shape[1] - 1)",
     "does not end"),
    ("04", "probs = logits.softmax(-1)", "probs = (logits / (temperature or 1)).softmax(-1)",
     "BEFORE temperature"),
    ("04", "logits[..., mask_id] = -torch.inf\n        probs = logits.softmax(-1)",
     "probs = logits.softmax(-1)\n        logits[..., mask_id] = -torch.inf",
     "does not end.*is \\[MASK\\] itself"),
    ("04", "logits[..., mask_id] = -torch.inf", "pass", "does not end"),
    ("04", "commit = torch.where(commit.any(1, keepdim=True), commit, best)", "pass",
     "does not end"),
    ("04", ".masked_fill(~masked, -1)", "", "does not end.*committed positions"),
    ("04", "commit, proposal, tokens)",
     "commit, proposal, tokens).masked_fill(~commit & masked & (iterations[:, None] > 2), 5)",
     "committed together"),
    ("04", "iterations += masked.any(1)", "iterations += 1", "for an example that is finished"),
    ("04", "tokens = torch.where(commit, proposal, tokens)",
     "window[commit] = proposal[commit]; tokens = window", "changed the window"),
    ("04", "> threshold", "> threshold / 2", "committed together"),
    ("04", "(logits / temperature)", "logits", "0.00001.*must be drawn from softmax"),
    ("05", "sure.scatter(1, open_choices.argmax(1, keepdim=True), True)", "step.confidence > 0.5",
     "Too few are right"),
    ("05", "sure.scatter(1, open_choices.argmax(1, keepdim=True), True)", "sure",
     "In 5.\\d of your passes a single token goes.*Look at a trace"),
    ("05", "step.confidence.masked_fill(~step.masked | sure, -1)", "step.confidence.clone()",
     "Look at a trace"),
    ("05", "sure.scatter(1, open_choices.argmax(1, keepdim=True), True)",
     "sure if step.iteration % 3 else sure.scatter(1, open_choices.argmax(1, keepdim=True), True)",
     "Fewer than before, and still more than 7"),
    ("05", "sure.scatter(1, open_choices.argmax(1, keepdim=True), True)",
     "sure | (open_choices == open_choices.max())", "each row is an example of its own"),
    ("05", "    open_choices = step.confidence.masked_fill(~step.masked | sure, -1)",
     "    while step.masked.any():\n        step.tokens = step.commit(step.confidence > 0.9)\n"
     "        step.masked = step.tokens == step.mask_id\n"
     "        step.rescore(step.look(step.tokens))\n    return step.tokens\n    open_choices = 0",
     "Too slow.*look of the rule's own"),
    ("05", "    open_choices = step.confidence.masked_fill(~step.masked | sure, -1)", "    missing",
     "NameError"),
    ("06", "prefix.shape[1] - 1", "prefix.shape[1]", "keeps the last prompt token"),
    ("06", "[(k[:, :, :kept], v[:, :, :kept]) for k, v in cache]", "cache",
     "keeps the window, too"),
    ("06", "    return cache", "    return [(v, v) for _, v in cache]",
     "causal=False is not what one pass"),
    ("06", "    return cache", "    return [(k[0], v[0]) for k, v in cache]", "four dimensions"),
    ("06", "hidden[:, -W - 1:-1]", "hidden[:, -W:]", "The shift is missing"),
    ("06", "hidden[:, :-1]", "hidden[:, 1:]", "Nothing was committed"),
    ("06", "causal=False, past=past", "causal=False", "Nothing was committed"),
    ("06", "causal=causal", "causal=True", "causal=False gives what it should give with causal=T"),
    ("06", "causal=causal", "causal=False", "causal=True gives what it should give with causal=F"),
    ("06", "model.transformer(prefix[:, :-1], causal=causal)\n    return cache",
     "model.transformer(prefix, causal=causal)\n"
     "    return [(k[:, :, :-1], v[:, :, :-1]) for k, v in cache]",
     "has seen the last prompt token"),
    ("06", 'WHY = "c"', "WHY = None",
     "as published .*\nalone, causal +\\d\\.\\d% +1\\d of 64 .*Write a letter"),
    ("06", 'WHY = "c"', 'WHY = "C"', "write \"a\", \"b\" or \"c\""),
    ("06", 'WHY = "c"', 'WHY = "a"', "so nothing is stale, and \\d\\.\\d%"),
    ("06", 'WHY = "c"', 'WHY = "b"', "neither has the prefix that ran alone.*[56]\\d of 64"),
    ("07", '"( *_|', '"(_|', "a space became a token"),
    ("07", 'r"( *_|<end>)", template', 'r"(<end>)", template', "the letter"),
    ("07", 'r"( *_|<end>)", template', 'r"( *_)", template', "became letters"),
    ("07", "[], tokenizer.mask_id", "[], tokenizer.eos_id", "it must be free"),
    ("07", "rest = tokenizer.eos_id", "ids += [tokenizer.eos_id]",
     "after `<end>` every token is EOS"),
    ("07", "window.expand(len(images), -1)",
     "torch.full_like(window, tokenizer.mask_id).expand(len(images), -1)",
     "belongs into the window"),
    ("08", "(step.confidence * masked) @ of_block / left",
     "step.confidence @ of_block * (left > 0)",
     "begins block.*with the highest mean over ALL its positions"),
    ("08", "(step.confidence * masked) @ of_block / left", "(step.confidence * masked) @ of_block",
     "begins block.*highest sum"),
    ("08", "(step.confidence * masked) @ of_block / left",
     "torch.stack([(step.confidence * masked)[:, block == i].amax(1)\n"
     "        for i in range(len(of_block.T))], 1)", "single most confident position"),
    ("08", "(step.confidence * masked) @ of_block / left",
     "(left > 0) * torch.arange(len(of_block.T), 0, -1)", "begins block.*as in rules/blocks.py"),
    ("08", "torch.where(done, surest, current)", "surest",
     "goes on in block.*has to be remembered"),
    ("08", "torch.where(done, surest, current)",
     "torch.where(done, surest, current)[:1].expand(len(masked))", "depend on the others"),
    ("08", 'step.memory.get("block", surest)', "globals().get('kept', surest)[:len(surest)]; "
     "globals()['kept'] = current", "depend on the others.*outlives the decoding"),
    ("08", ".scatter(1, confidence.argmax(1, keepdim=True), True)", "", "commits nothing"),
    ("08", "(confidence > 0.9).scatter(1,", "((confidence > 0.9) & False).scatter(1,",
     "is left out"),
    ("08", "confidence > 0.9", "confidence > 0.7", "only the most confident masked position"),
    ("08", "~masked | (block != current[:, None])", "~masked", "commits in blocks .* at once"),
    ("08", "torch.where(done, surest, current)", "torch.where(done[:1], surest, current)",
     "depend on the others|commits nothing"),
    ("09", "ends[0] + 1", "ends[0]", "cut behind it"),
    ("09", "ends[0] + 1", "ends[-1] + 1", "cut behind the FIRST"),
    ("09", "(tokens[0] == eos_id)", "(proposal[0] == eos_id)", "proposed, not committed"),
    ("09", "if len(ends):", "if False:", "cut behind the FIRST"),
    # which of the two depends on whether the weights commit an earlier EOS in one of the pictures
    ("09", "if len(ends):", "if len(ends) and tokens.shape == window.shape:",
     "an earlier one may come later|cut behind the FIRST"),
    ("09", "    return out", "    return tokens", "pad them with EOS"),
    ("10", "torch.cat([x, x]) for x", "x.repeat_interleave(2, 0) for x",
     "not complements.*side by side"),
    ("10", "return images, prompt, response, response",
     "return images, prompt, response.roll(1, 0), response", "in one order everywhere"),
    ("10", "(torch.cat([x, x]) for x in (images, prompt, response))",
     "images.repeat_interleave(2, 0), prompt.repeat(2, 1), response.repeat(2, 1)",
     "different examples"),
    ("10", "(1 - t).clamp(min=EPS)", "t", "The complement has the same t"),
    ("10", ".clamp(min=EPS)", "", "level is 0"),
    ("10", "torch.cat([masked, ~masked])", "torch.cat([masked, masked])", "not complements"),
    ("10", "response.masked_fill(masked, mask_id)",
     "response.masked_fill(masked.roll(len(masked) // 2, 0), mask_id)",
     "where the OTHER twin's mask is"),
    ("10", "response, response.masked_fill(masked, mask_id)",
     "response.masked_fill(masked, mask_id), response.masked_fill(masked, mask_id)",
     "must be the clean one"),
    ("10", "    return images, prompt, response, response.masked_fill(masked, mask_id)",
     "    noisy = response.masked_fill(torch.cat([masked[:len(masked) // 2]] * 2), mask_id)\n"
     "    return images, prompt, response, noisy.masked_fill(masked, mask_id)",
     "masked everywhere"),
    ("11", "(15, 35)", "(90, 100)", "confident:0.5: you guessed 90 to 100%.*they mix"),
    ("11", "(15, 35)", "(0, 100)", "points wide"),
    ("11", "(15, 35)", "(0.15, 0.35)", "looks like fractions"),
    ("11", "(15, 35)", "'much'", "is no range"),
    ("11", "(15, 35)", "(35, 15)", "from low to high"),
]


def slow_if(start, *names):
    """Exercises whose checker decodes many pictures are for CI."""
    return [pytest.mark.slow] if start in names else []


def assert_lesson(start, old, new, lesson):
    """Our answer with one mistake in it fails, and says so."""
    source = answer(named(start))
    assert source.count(old) == 1, "the mistake must be made in one place"
    message = failure(source.replace(old, new))
    assert re.search(lesson, message, re.S), message


@pytest.mark.parametrize("start, old, new, lesson", [
    pytest.param(*one, marks=slow_if(one[0], "05", "11") or (
        slow_if(one[1][:3], "WHY"))) for one in MISTAKES])
def test_a_well_known_mistake_fails_with_its_lesson(start, old, new, lesson):
    assert_lesson(start, old, new, lesson)


OTHERS = {  # right answers that are not like ours
    "01": ["""
import random
import torch
def draw_t(B):
    return torch.tensor([random.uniform(1e-3, 1) for _ in range(B)])
def forward_process(response, t, mask_id):
    masked = torch.bernoulli(t.unsqueeze(1).expand(response.shape)).bool()
    noisy = response.clone()
    noisy[masked] = mask_id
    return noisy, masked
""", """
from mini_dimple import forward_process
import mini_dimple
draw_t = lambda B: mini_dimple.draw_t(B, 'cpu')
"""],
    "02": ["""
def diffusion_loss(model, images, prompt, response, masked, t):
    total = 0
    for b in range(len(response)):
        noisy = response[b:b + 1].clone()
        noisy[0, masked[b]] = model.config.mask_id
        log_probs = model(images[b:b + 1], prompt[b:b + 1], noisy, causal=False)[0].log_softmax(-1)
        for i in masked[b].nonzero()[:, 0].tolist():
            total = total - log_probs[i, response[b, i]] / t[b]
    return total / len(response) / response.shape[1]
""", """
from mini_dimple import token_nll
def diffusion_loss(model, images, prompt, response, masked, t):
    logits = model(images, prompt, response.masked_fill(masked, model.config.mask_id), causal=False)
    nll = token_nll(logits, response).where(masked, 0)
    return (nll.mean(1) / t).mean()
"""],
    "03": ["""
import torch
def attention(q, k, v, causal):
    out = torch.zeros_like(q)
    for i in range(q.shape[2]):
        end = i + 1 if causal else q.shape[2]
        weights = torch.einsum("bhd,bhkd->bhk", q[:, :, i],
                               k[:, :, :end]).div(q.shape[-1] ** 0.5).exp()
        out[:, :, i] = (torch.einsum("bhk,bhkd->bhd", weights, v[:, :, :end])
                        / weights.sum(-1, keepdim=True))
    return out
""", """
import torch
def attention(q, k, v, causal):
    T = q.shape[2]
    bias = torch.full((T, T), -1e9).triu(1) if causal else 0
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5 + bias, -1) @ v
"""],
    "04": ["""
import torch
def decode(model, images, prompt, window, threshold, temperature=0.0):
    rows, counts, mask = [], [], model.config.mask_id
    for b in range(len(window)):
        tokens, n = window[b].tolist(), 0
        while mask in tokens:
            with torch.no_grad():
                logits = model.logits(model.prefix(images[b:b + 1], prompt[b:b + 1]),
                                     torch.tensor([tokens]), causal=False)[0][0]
            logits[:, mask] = float("-inf")
            probs, n, sure, best = logits.softmax(-1), n + 1, [], None
            for i, token in enumerate(tokens):
                if token == mask:
                    new = (torch.multinomial((logits[i] / temperature).softmax(-1), 1).item()
                           if temperature else int(probs[i].argmax()))
                    p = probs[i, new].item()
                    sure += [(i, new)] if p > threshold else []
                    best = max(best or (0, 0, 0), (p, i, new))
            for i, new in sure or [best[1:]]:
                tokens[i] = new
        rows.append(tokens)
        counts.append(n)
    return torch.tensor(rows), torch.tensor(counts)
""", """
import torch
@torch.no_grad()
def decode(model, images, prompt, window, threshold, temperature=0.0):
    mask, out, counts = (model.config.mask_id, window.clone(),
                         torch.zeros(len(window), dtype=torch.int32))
    for b in range(len(window)):
        while (out[b] == mask).any():
            # all of the batch, for one example's sake
            logits = model(images, prompt, out, causal=False)[b]
            logits[:, mask] = -torch.inf
            probs = logits.softmax(-1)
            drawn = (torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]
                     if temperature else probs.argmax(-1))
            sure = probs.gather(1, drawn[:, None])[:, 0].masked_fill(out[b] != mask, 0)
            commit = sure > threshold if (sure > threshold).any() else sure == sure.max()
            out[b, commit] = drawn[commit]
            counts[b] += 1
    return out, counts
""", """
import mini_dimple
def decode(model, images, prompt, window, threshold, temperature=0.0):
    look = mini_dimple.full(model, images, prompt)
    rule = mini_dimple.confident(threshold)
    out = mini_dimple.decode(look, window, model.config, rule, temperature)
    return out.tokens, out.iterations
"""],
    "05": ["""
from rules.eb_sampler import rule
""", """
def rule(step):
    commit = step.confidence > 0.95
    for b in range(len(commit)):
        rest = [(step.confidence[b, i].item(), i) for i in range(commit.shape[1])
                if step.masked[b, i] and not commit[b, i]]
        if rest:
            commit[b, max(rest)[1]] = True
    return commit
"""],
    "06": ["""
import torch
def first_pass(model, prefix, window):
    logits, cache = model.logits(prefix, window, causal=False)
    n = prefix.shape[1] - 1
    return logits, tuple((k[:, :, :n].clone(), v[:, :, :n].clone()) for k, v in cache)
def later_pass(model, last, tokens, past):
    return model.logits(last, tokens, causal=False, past=past)[0]
def lone_past(model, prefix, causal):
    if not causal:
        return model.transformer(prefix[:, :prefix.shape[1] - 1], False)[1]
    past = None
    for i in range(prefix.shape[1] - 1):
        past = model.transformer(prefix[:, i:i + 1], True, past)[1]
    return past
WHY = "c"
"""],
    "07": ["""
import torch
from mini_dimple import confident, decode, full
def make_window(template, length, tokenizer):
    ends = template.endswith("<end>")
    pieces = template.removesuffix("<end>").split("_")
    pieces = [piece.rstrip() for piece in pieces[:-1]] + pieces[-1:]
    ids = tokenizer.encode(pieces[0])
    for piece in pieces[1:]:
        ids = ids + [tokenizer.mask_id] + tokenizer.encode(piece)
    while len(ids) < length:
        ids.append(tokenizer.eos_id if ends else tokenizer.mask_id)
    return torch.tensor(ids)[None]
def infill(model, tokenizer, images, prompt, template):
    texts = []
    for b in range(len(images)):
        window = make_window(template, 48, tokenizer)
        look = full(model, images[b:b + 1], prompt[b:b + 1])
        tokens = decode(look, window, model.config, confident(0.8)).tokens[0].tolist()
        texts.append(tokenizer.decode(tokens[:tokens.index(tokenizer.eos_id)]))
    return texts
"""],
    "08": ["""
import torch
def rule(step, k=16):  # remembers nothing: a begun block has tokens that were not given
    commit, k = torch.zeros_like(step.masked), int(k)
    for b, masked in enumerate(step.masked):
        blocks = [range(i, min(i + k, len(masked))) for i in range(0, len(masked), k)]
        blocks = [[i for i in block] for block in blocks if any(masked[i] for i in block)]
        if not blocks:  # finished
            continue
        begun = [block for block in blocks
                 if any(not masked[i] and not step.given[b, i] for i in block)]
        free = [[i for i in block if masked[i]] for block in begun or blocks]
        mean = lambda places: sum(step.confidence[b, i].item() for i in places) / len(places)
        places = max(free, key=mean)
        sure = [i for i in places if step.confidence[b, i] > 0.9]
        commit[b, sure or [max(places, key=lambda i: step.confidence[b, i].item())]] = True
    return commit
""", """
import torch
def rule(step, k=16):
    B, W = step.masked.shape
    blocks = [slice(i, i + k) for i in range(0, W, k)]
    current = step.memory.setdefault("current", [None] * B)
    here = step.masked  # the step is the rule's own, to write into
    keep = torch.zeros_like(here)
    for b in range(B):
        free = [block for block in blocks if here[b, block].any()]
        if free and current[b] not in free:
            current[b] = max(free, key=lambda block: step.confidence[b, block][
                here[b, block]].mean())
        if free:
            keep[b, current[b]] = True
    here &= keep
    sure = step.probs.amax(-1) * here
    return torch.where((sure > 0.9).any(1, True), sure > 0.9, sure == sure.amax(1, True)) & here
"""],
    "09": ["""
import torch
@torch.no_grad()
def decode_shrinking(model, images, prompt, window, threshold):
    tokens, eos, mask = window[0].tolist(), model.config.eos_id, model.config.mask_id
    while mask in tokens:
        logits = model(images, prompt, torch.tensor([tokens]), causal=False)[0]
        logits[:, mask] = float("-inf")
        sure, new = logits.softmax(-1).max(-1)
        free = [i for i, token in enumerate(tokens) if token == mask]
        for i in [i for i in free if sure[i] > threshold] or [max(free, key=lambda i: sure[i])]:
            tokens[i] = new[i].item()
        if eos in tokens:
            tokens = tokens[:tokens.index(eos) + 1]
    return torch.tensor([tokens + [eos] * (window.shape[1] - len(tokens))])
"""],
    "10": ["""
import torch
def twins(images, prompt, response, masked, t, mask_id):
    images, prompt, response = (x.repeat_interleave(2, dim=0) for x in (images, prompt, response))
    masked = torch.stack([masked, ~masked], 1).flatten(0, 1)
    t = torch.stack([t, torch.maximum(1 - t, torch.tensor(1e-3))], 1).flatten()
    return images, prompt, response, torch.where(masked, mask_id, response), masked, t
"""],
}


def assert_passes(start, source):
    """A right answer passes, and shows something -> that text."""
    passes, text = run(f"{source}\nfrom exercises.checks.{named(start)[3:]} import *")
    assert passes, text
    assert 4 <= len(text.splitlines()) <= 14 and text.isascii(), "it shows something, on any screen"
    return text


@pytest.mark.parametrize("start, source", [
    pytest.param(start, source, marks=slow_if(start, "04", "05", "06", "08"))
    for start, sources in OTHERS.items() for source in sources])
def test_any_right_answer_passes(start, source):
    assert_passes(start, source)


@pytest.mark.slow
def test_the_stretch_goal_of_exercise_5_is_reached_by_the_answer_that_says_so():
    source = answer(named("05"))
    assert "Stretch goal" in run(source)[1] and "not yet" in run(source)[1]
    source = source.replace("def rule(", "def modest(").replace("def bold(", "def rule(")
    assert re.search("Stretch goal .*: reached", run(source)[1])


@pytest.mark.parametrize("start, number", [("05", ""), ("08", ":16")])
def test_a_rule_of_the_course_gets_its_row_on_the_leaderboard(start, number, tmp_path, monkeypatch,
                                                              capsys):
    monkeypatch.setattr("lab.board.RULES", ("confident:0.9",))
    rule = f"{EXERCISES / 'answers' / named(start)}.py{number}"
    main(["rules", "--rule", rule, "--scenes", "8", "--picture", str(tmp_path / "p.png"),
          "--device", "cpu"])
    assert re.search(rf"\| `{named(start)}{number}` \| \S*★ \|", capsys.readouterr().out)


def test_the_model_is_left_as_it_was():
    """A watched model is the shared one again, even after a failure inside."""
    model, some = checks.shipped()[0], checks.scenes(64)
    with (pytest.raises(pytest.fail.Exception, match="enough"),
          checks.watched(model, *some[:1][:2], 1, "enough") as seen):
        for _ in range(2):
            model(*some[:1], causal=False)
    assert len(seen[0]) == 1 and model.logits.__func__ is mini_dimple.Dimple.logits
    assert torch.equal(seen[0][0].window, some.windows[0])


# ---------------------------------------------------------------- python -m exercises

@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder of somebody's files for exercises 1 and 10, none right yet; there are no others."""
    monkeypatch.setattr(runner, "NAMES", {n: named(f"{n:02d}") for n in (1, 10)})
    for name in runner.NAMES.values():
        (tmp_path / f"{name}.py").write_text((EXERCISES / f"{name}.py").read_text())
    return tmp_path


def ran(*words):
    """`python -m exercises` with these words -> exit status."""
    try:
        runner.main([str(word) for word in words])
    except SystemExit as end:
        return end.code
    return 0


def test_all_exercises_are_a_line_each(desk, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    noisy = "print('not for this list')\n" + answer(named("01")).replace("< t[:, None]", "> t")
    (desk / f"{named('01')}.py").write_text(noisy)
    assert ran("--folder", desk) == 1
    first, second, end = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r" 1  01_forward_process {2,}The size of tensor .* \.\.\.", first)
    assert re.fullmatch(r"10  10_complementary_masks  twins is not written yet\.", second)
    assert end == "0 of 2 pass" and max(len(first), len(second)) <= 80
    for name in runner.NAMES.values():
        (desk / f"{name}.py").write_text(answer(name))
    assert ran("--folder", desk) == 0
    first, second, end = capsys.readouterr().out.splitlines()
    assert first.endswith("  passes") and second.endswith("  passes") and end == "2 of 2 pass"


def test_one_exercise_comes_with_its_whole_lesson_or_what_it_shows(desk, capsys):
    path = desk / f"{named('10')}.py"
    path.write_text(answer(path.stem).replace("(1 - t).clamp(min=EPS)", "print('mine') or t"))
    assert ran(10, "--folder", desk) == 1
    out = capsys.readouterr().out
    assert str(path) in out and "mine\n" in out and "the loss divides by the level.\n" in out
    assert re.search(r"\ndoes not pass yet \(\d+\.\d s\)\n", out)
    path.write_text(answer(path.stem))
    assert ran(10, "--folder", desk) == 0
    out = capsys.readouterr().out
    assert "two drawn apart" in out and re.search(r"\npasses \(\d+\.\d s\)\n", out)
    assert ran(10, 1, "--folder", desk) == 1 and "1 of 2 pass" in capsys.readouterr().out


def test_yours_are_those_in_exercises_and_ours_those_of_answers(desk, capsys):
    assert ran() == 1
    assert capsys.readouterr().out.endswith("0 of 2 pass; next: python -m exercises 1\n")
    assert ran("--answers") == 0
    assert ran("--answers", 10) == 0 and "answers" in capsys.readouterr().out


@pytest.mark.parametrize("source, lesson", [
    ("def twins(:\n    pass", r"Line 1: def twins\(:\nSyntaxError: "),
    ("import nothing_of_that_name", "Line 1: import nothing_of_that_name\nModuleNotFoundError: "),
    ("exit('enough')", r"Line 1: exit\('enough'\)\nSystemExit: enough"),
    ("def twins(*given):\n    exit()", r"Line 2: exit\(\)\nSystemExit"),
    ("twins = None", "TypeError: 'NoneType' object is not callable"),
    (None, "There is no such file in ")])
def test_a_file_that_does_not_run_does_not_stop_the_others(source, lesson, desk, capsys):
    path = desk / f"{named('10')}.py"
    path.write_text(source) if source else path.unlink()
    assert ran(10, 1, "--folder", desk) == 1
    out = capsys.readouterr().out
    assert re.search(lesson, out) and "draw_t is not written yet" in out
    assert "Traceback" not in out or "The checker did not expect this" in out


@pytest.mark.parametrize("words, line", [
    ([0], "argument N: must be 1 or more"), ([77], "77: the exercises are 1 to 2"),
    (["--folder", "nowhere"], "--folder nowhere: there is no such folder"),
    (["--answers", "--folder", "x"], "not allowed with")])
def test_what_the_runner_refuses(words, line, desk, capsys):
    assert line in refused_by(runner.main)(capsys, *words)


@pytest.mark.slow
def test_the_command_in_the_repository_folder():
    command = [sys.executable, "-m", "exercises", "--answers", "1", "10"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=EXERCISES.parent)
    assert found.returncode == 0 and not found.stderr
    assert "restored" in found.stdout and "2 of 2 pass" in found.stdout


@pytest.mark.slow
def test_what_a_student_sees(tmp_path):
    """pytest itself, on a stub, a mistake, an exception and a right answer: one lesson each,
    no traceback."""
    right, stub = answer(named("01")), (EXERCISES / f"{named('01')}.py").read_text()
    cases, root = {}, EXERCISES.parent
    for name, source, words in (
            ("stub", stub, "draw_t is not written yet"),
            ("mistake", right.replace("t[:, None]", "t[:1, None]"), "each example has its own t"),
            ("exception", right.replace("response.masked_fill", "response.masked_full"),
             r"Line \d+: return response\.masked_full.*\nAttributeError: "),
            ("shapes", right.replace("t[:, None]", "t"), "do not line up"), ("right", right, "")):
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        cases[path] = words
    found = subprocess.run([sys.executable, "-m", "pytest", *cases, "--rootdir", root,
                            "-c", root / "pyproject.toml", "--color=no"],
                           capture_output=True, text=True, cwd=root)
    assert found.returncode == 1 and "4 failed, 1 passed" in found.stdout
    assert not re.search("Traceback|During handling|checks/|hidden", found.stdout)
    assert "\nrestored " in found.stdout, "what the right one shows, without -s"
    lessons = re.split("_{5,} test_exercise _{5,}", found.stdout)[1:]
    for lesson, words in zip(lessons, cases.values()):
        lines = lesson.split("====")[0].strip().splitlines()
        assert re.search(words, lesson) and len(lines) <= 4, lesson
