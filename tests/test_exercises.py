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
from exercises import checks
from lab.__main__ import main

EXERCISES = Path(__file__).parent.parent / "exercises"
NAMES = sorted(path.stem for path in EXERCISES.glob("[0-9]*.py"))


def failure(source):
    """Run an exercise's source and the checker that it imports -> the message with which it fails,
    "" if it passes."""
    checks.scenes.cache_clear()  # a mistake may have written into them
    module = types.ModuleType("exercise")
    module.__file__ = "exercise.py"
    exec(compile(source, module.__file__, "exec"), vars(module))
    try:
        module.test_exercise(types.SimpleNamespace(module=module))  # pytest's `request` in short
    except pytest.fail.Exception as error:
        assert not error.pytrace, "the lesson alone"
        return str(error)
    return ""


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
     "Line \\d+: .*(NotImplemented|Runtime)Error"),
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
     "Look at a trace"),
    ("05", "masked_fill(~step.masked | sure, -1)", "clone()", "Look at a trace"),
    ("05", "sure.scatter(1, open_choices.argmax(1, keepdim=True), True)",
     "sure | (open_choices == open_choices.max())", "each row is an example of its own"),
    ("05", "    sure = ",
     "    while step.masked.any():\n        step.tokens = step.commit(step.confidence > 0.9)\n"
     "        step.masked = step.tokens == step.mask_id\n"
     "        step.score(step.look(step.tokens))\n    return step.tokens\n    sure = ",
     "Too slow.*look of the rule's own"),
    ("05", "0.9", "missing", "NameError"),
    ("06", "prefix.shape[1] - 1", "prefix.shape[1]", "keeps the last prompt token"),
    ("06", "[(k[:, :, :kept], v[:, :, :kept]) for k, v in cache]", "cache",
     "keeps the window, too"),
    ("06", "    return cache", "    return [(v, v) for _, v in cache]", "naive past is not what"),
    ("06", "    return cache", "    return [(k[0], v[0]) for k, v in cache]", "four dimensions"),
    ("06", "hidden[:, -W - 1:-1]", "hidden[:, -W:]", "The shift is missing"),
    ("06", "hidden[:, :-1]", "hidden[:, 1:]", "Nothing was committed"),
    ("06", "causal=False, past=past", "causal=False", "Nothing was committed"),
    ("06", "model.transformer(prefix[:, :-1], causal=False)\n",
     "model.transformer(prefix[:, :-1], causal=True)\n", "under the causal mask"),
    ("06", "model.transformer(prefix[:, :-1], causal=False)\n    return cache",
     "model.transformer(prefix, causal=False)\n"
     "    return [(k[:, :, :-1], v[:, :, :-1]) for k, v in cache]",
     "has seen the last prompt token"),
    ("07", '"( *_|', '"(_|', "a space became a token"),
    ("07", 'r"( *_|<end>)", template', 'r"(<end>)", template', "the letter"),
    ("07", 'r"( *_|<end>)", template', 'r"( *_)", template', "became letters"),
    ("07", "[], tokenizer.mask_id", "[], tokenizer.eos_id", "it must be free"),
    ("07", "rest = tokenizer.eos_id", "ids += [tokenizer.eos_id]",
     "after `<end>` every token is EOS"),
    ("07", "window.expand(len(images), -1)",
     "torch.full_like(window, tokenizer.mask_id).expand(len(images), -1)",
     "belongs into the window"),
    ("08", "torch.where(step.masked, block, W).amin(1, keepdim=True)",
     "torch.where(step.masked, block, W).amin()", "depend on the others"),
    ("08", "torch.where(step.masked, block, W).amin(1, keepdim=True)",
     "torch.tensor(step.iteration)", "commits nothing of it"),
    ("08", ".scatter(1, confidence.argmax(1, keepdim=True), True)", "", "commits nothing of it"),
    ("08", "(confidence > 0.9).scatter(1,", "((confidence > 0.9) & False).scatter(1,",
     "is left out"),
    ("08", "torch.where(step.masked, block, W)", "torch.where(step.masked | step.given, block, W)",
     "given or committed"),
    ("09", "ends[0] + 1", "ends[0]", "cut behind it"),
    ("09", "ends[0] + 1", "ends[-1] + 1", "cut behind the FIRST"),
    ("09", "(tokens[0] == eos_id)", "(proposal[0] == eos_id)", "proposed, not committed"),
    ("09", "if len(ends):", "if False:", "cut behind the FIRST"),
    ("09", "if len(ends):", "if len(ends) and tokens.shape == window.shape:",
     "an earlier one may come later"),
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


@pytest.mark.parametrize("start, old, new, lesson", [
    pytest.param(*one, marks=slow_if(one[0], "05", "11")) for one in MISTAKES])
def test_a_well_known_mistake_fails_with_its_lesson(start, old, new, lesson):
    source = answer(named(start))
    assert source.count(old) == 1, "the mistake must be made in one place"
    message = failure(source.replace(old, new))
    assert re.search(lesson, message, re.S), message


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
from mini_dimple import token_nll, weigh
def diffusion_loss(model, images, prompt, response, masked, t):
    logits = model(images, prompt, response.masked_fill(masked, model.config.mask_id), causal=False)
    return weigh(token_nll(logits, response), masked, t, "elbo")
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
                logits = model.score(model.prefix(images[b:b + 1], prompt[b:b + 1]),
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
    logits, cache = model.score(prefix, window, causal=False)
    n = prefix.shape[1] - 1
    return logits, tuple((k[:, :, :n].clone(), v[:, :, :n].clone()) for k, v in cache)
def later_pass(model, last, tokens, past):
    return model.score(last, tokens, causal=False, past=past)[0]
def naive_past(model, prefix):
    return model.transformer(prefix[:, :prefix.shape[1] - 1], False)[1]
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
def rule(step, k=16):
    first = step.masked.long().argmax(1) // int(k) * int(k)
    place = torch.arange(step.masked.shape[1])
    here = step.masked  # the step is the rule's own, to write into
    here &= (place >= first[:, None]) & (place < first[:, None] + int(k))
    sure = step.probs.amax(-1) * here
    return torch.where((sure > 0.9).any(1, True), sure > 0.9, sure == sure.amax(1, True)) & here
""", """
import torch
def rule(step, k=16):
    commit, k = torch.zeros_like(step.masked), int(k)
    for b, masked in enumerate(step.masked):
        if not masked.any():  # finished
            continue
        start = masked.nonzero()[0].item() // k * k
        here = masked.clone()
        here[:start], here[start + k:] = False, False
        places = here.nonzero()[:, 0]
        sure = places[step.confidence[b, places] > 0.9]
        commit[b, sure if len(sure) else places[step.confidence[b, places].argmax()]] = True
    return commit
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


@pytest.mark.parametrize("start, source", [
    pytest.param(start, source, marks=slow_if(start, "04", "05", "06", "08"))
    for start, sources in OTHERS.items() for source in sources])
def test_any_right_answer_passes(start, source):
    assert not failure(f"{source}\nfrom exercises.checks.{named(start)[3:]} import *")


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
    assert len(seen[0]) == 1 and model.score.__func__ is mini_dimple.Dimple.score
    assert torch.equal(seen[0][0].window, some.windows[0])


@pytest.mark.slow
def test_what_a_student_sees(tmp_path):
    """The course's command, on a stub, a mistake, an exception and a right answer: one lesson each,
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
    run = subprocess.run([sys.executable, "-m", "pytest", *cases, "--rootdir", root,
                          "-c", root / "pyproject.toml", "--color=no"],
                         capture_output=True, text=True, cwd=root)
    assert run.returncode == 1 and "4 failed, 1 passed" in run.stdout
    assert not re.search("Traceback|During handling|checks/|hidden", run.stdout)
    lessons = re.split("_{5,} test_exercise _{5,}", run.stdout)[1:]
    for lesson, words in zip(lessons, cases.values()):
        lines = lesson.split("====")[0].strip().splitlines()
        assert re.search(words, lesson) and len(lines) <= 4, lesson
