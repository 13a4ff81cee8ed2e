"""The rules in rules/ do what their names say; rules may take back, once; a bad rule is named."""
import math
import random

import pytest
import torch
from conftest import MASK, random_inputs, random_model
from test_decode import random_window

from mini_dimple import RuleError, Step, confident, decode
from rules import named, resolve, scheduled

COUNTED = ("maskgit", "entropy", "margin", "left_to_right", "random_order")


def random_step(seed, B=4, W=9, vocab=20):
    g = torch.Generator().manual_seed(seed)
    probs = torch.randn(B, W, vocab, generator=g, dtype=torch.double).mul(2).softmax(-1)
    state = torch.randint(0, 4, (B, W), generator=g)  # 0 given, 1 committed, else masked
    tokens = torch.where(state > 1, MASK, torch.randint(0, 18, (B, W), generator=g))
    tokens[:, 0] = MASK
    confidence, proposal = probs.max(-1)
    return Step(0, tokens, tokens == MASK, (state == 0) & (tokens != MASK), proposal, confidence, probs)


def test_every_file_is_a_rule():
    assert {"confident", "remask", *COUNTED} == set(named())
    for name in named():
        choice = resolve(name)(random_step(0))
        for tensor in choice if isinstance(choice, tuple) else (choice,):
            assert tensor.dtype == torch.bool and tensor.shape == (4, 9)


@pytest.mark.parametrize("case", range(20))
def test_counted_rules_take_the_best_by_their_own_measure(case):
    rng, step = random.Random(case), random_step(case)
    k = rng.randint(1, 5)
    measures = {"maskgit": lambda p, i: max(p), "entropy": lambda p, i: sum(x * math.log(x) for x in p if x > 0),
                "margin": lambda p, i: sorted(p)[-1] - sorted(p)[-2], "left_to_right": lambda p, i: -i}
    for name in COUNTED:
        choice = resolve(f"{name}:{k}")(step)
        for b in range(4):
            masked = [i for i in range(9) if step.masked[b, i]]
            done = 9 - len(masked) - step.given[b].sum().item()
            count = min(len(masked), k - done % k)  # up to the next multiple of k
            assert not (choice & ~step.masked).any() and choice[b].sum() == count
            if name in measures:
                best = sorted(masked, key=lambda i: -measures[name](step.probs[b, i].tolist(), i))[:count]
                assert choice[b].nonzero()[:, 0].tolist() == sorted(best), name


@pytest.mark.parametrize("case", range(40))
def test_the_schedule_is_the_public_codes(case):
    """Plain Python: over a uniform grid, the next time s with n_masked * (1 - s / t) >= 1."""
    rng = random.Random(case)
    free, steps = rng.randint(1, 40), rng.randint(1, 40)
    n_masked, k = rng.randint(1, free), free / steps
    step = Step(0, None, torch.arange(free)[None] < n_masked, torch.zeros(1, free, dtype=torch.bool), None, None, None)
    t = n_masked / free
    s = max(s for s in (i / steps for i in range(steps + 1)) if n_masked * (1 - s / t) >= 1 - 1e-9)
    assert scheduled(step, k).item() == pytest.approx(n_masked * (1 - s / t), abs=1)  # floor, at least 1
    assert 1 <= scheduled(step, k).item() <= n_masked * (1 - s / t) + 1e-3


@pytest.mark.parametrize("case", range(8))
def test_a_one_line_rule_in_a_file_equals_confident(case, tmp_path):
    (tmp_path / "mine.py").write_text("rule = lambda step: step.confidence > 0.3\n")
    (tmp_path / "number.py").write_text("def rule(step, threshold=0.9): return step.confidence > threshold\n")
    model, (images, prompt, _) = random_model(case), random_inputs(case, 16, 12)
    window = random_window(random.Random(case), 16, 12)
    built_in = decode(model, images, prompt, window, confident(0.3))
    for text in (f"{tmp_path}/mine.py", f"{tmp_path}/number.py:0.3", "confident:0.3"):
        out = decode(model, images, prompt, window, resolve(text))
        assert torch.equal(out.tokens, built_in.tokens) and torch.equal(out.iterations, built_in.iterations)


@pytest.mark.parametrize("name", ["remask:0.2", *(f"{name}:3" for name in COUNTED if name != "random_order")])
def test_a_batch_decodes_as_each_example_alone(name, seed):
    model, (images, prompt, _) = random_model(seed), random_inputs(seed, 16, 12)
    window = random_window(random.Random(seed), 16, 12)
    batch = decode(model, images, prompt, window, resolve(name))
    for b in range(16):
        alone = decode(model, images[b:b + 1], prompt[b:b + 1], window[b:b + 1], resolve(name))
        assert torch.equal(batch.tokens[b:b + 1], alone.tokens) and batch.iterations[b] == alone.iterations


def taking_back(rng):
    g = torch.Generator().manual_seed(rng.randrange(1000))
    yield lambda step: (step.masked, ~step.masked)
    yield lambda step: (torch.zeros_like(step.masked), torch.ones_like(step.masked))
    yield lambda step: (torch.rand(step.masked.shape, generator=g) < 0.4, torch.rand(step.masked.shape, generator=g) < 0.4)
    yield lambda step: (step.masked, step.masked)
    yield resolve("remask:0.1")


@pytest.mark.parametrize("case", range(20))
def test_what_is_taken_back(case):
    rng = random.Random(case)
    B, W = rng.randint(1, 4), rng.randint(1, 10)
    model, (images, prompt, _) = random_model(case), random_inputs(case, B, W)
    for rule in taking_back(rng):
        window = random_window(rng, B, W)
        out = decode(model, images, prompt, window, rule, prefill=rng.random() < 0.5, trace=True)
        assert not (out.tokens == MASK).any() and torch.equal(out.tokens[window != MASK], window[window != MASK])
        assert (out.iterations <= 2 * (window == MASK).sum(1)).all()
        back, before = torch.zeros(B, W, dtype=torch.long), window
        for number, line in enumerate(out.trace):
            now_back = (line.tokens == MASK) & (before != MASK)
            back += now_back
            unfinished = (before == MASK).any(1)
            assert torch.equal(unfinished, number < out.iterations), "an example that is finished stays so"
            assert torch.equal(line.committed.any(1), unfinished) and not (line.committed & (before != MASK)).any()
            same = ~(line.committed | now_back)
            assert torch.equal(line.tokens[same], before[same])
            before = line.tokens
        assert back.max() <= 1 and torch.equal(before, out.tokens)


def test_remasking_takes_back_what_became_improbable():
    step = random_step(1)
    commit, back = resolve("remask:0.5")(step)
    own = torch.tensor([[step.probs[b, i, step.tokens[b, i]] for i in range(9)] for b in range(4)])
    assert torch.equal(commit, step.confidence > 0.5) and torch.equal(back, own < 0.1)


def test_counts_beyond_the_window_commit_it_whole():
    step = random_step(0)
    for k in (9, 100, 1e20, 1e300):
        assert torch.equal(resolve(f"maskgit:{k}")(step), step.masked)
    assert (resolve("maskgit:1e-300")(step).sum(1) == 1).all()


def test_odd_files_that_are_rules(tmp_path):
    """A colon in the path, a dataclass with postponed annotations, a built-in function that does not tell its parameters."""
    (tmp_path / "a:b").mkdir()
    path = tmp_path / "a:b" / "mine.py"
    path.write_text("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Count:\n    k: int\n"
                    "def rule(step, k=1): return step.masked | (Count(k).k > 0)\n")
    for text in (str(path), f"{path}:4"):
        assert resolve(text)(random_step(0)).all() and resolve(text).__name__ == text
    path.write_text("rule = max")
    assert resolve(f"{path}:4").__name__ == f"{path}:4"


@pytest.mark.parametrize("text, message", [
    ("other", "unknown; choose one of confident, entropy"), ("none/mine.py", "does not exist"), ("maskgit:x", "'x' is not a number"),
    ("maskgit:0", "above 0"), ("maskgit:-1", "above 0"), ("maskgit:nan", "above 0"), ("confident:2", "at most 1"), ("__init__", "unknown"), ("", "unknown"),
])
def test_rules_that_do_not_resolve(text, message):
    with pytest.raises(ValueError, match=message) as error:
        resolve(text)
    assert f"--rule {text}" in str(error.value)


@pytest.mark.parametrize("code, message", [
    ("import sys\nsys.exit('bye')", "SystemExit: bye"),
    ("def rule(step:", "SyntaxError"), ("import nothing_of_this_name", "ModuleNotFoundError"), ("rules = 1", "no function `rule"), ("rule = 3", "no function `rule"),
])
def test_files_that_hold_no_rule(code, message, tmp_path):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(ValueError, match=message):
        resolve(f"{tmp_path}/mine.py")
    (tmp_path / "mine.py").write_text("def rule(step): return step.masked")
    with pytest.raises(ValueError, match="takes no number"):
        resolve(f"{tmp_path}/mine.py:3")


@pytest.mark.parametrize("body, message", [
    ("1 / 0", "ZeroDivisionError"), ("step.nothing", "AttributeError"), ("None", "must return a bool tensor"), ("step.confidence", "must return"),
    ("step.masked[0]", "must return"), ("(step.masked,) * 3", "must return"), ("(step.masked, None)", "must return"), ("step.tokens.zero_() == 0", "writes into the step"),
])
def test_rules_that_misbehave_are_named(body, message, tmp_path):
    (tmp_path / "mine.py").write_text(f"def rule(step):\n    return {body}\n")
    images, prompt, _ = random_inputs(0, 2, 5)
    with pytest.raises(RuleError, match=message) as error:
        decode(random_model(0), images, prompt, torch.full((2, 5), MASK), resolve(f"{tmp_path}/mine.py"))
    assert "mine.py" in str(error.value)
