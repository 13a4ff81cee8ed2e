"""Rules and looks from the command line: what is found, what they are handed, what is said when
they fail. And what any rule must do: `python -m pytest tests/test_rules.py --rule mine.py` checks
a file of yours."""
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import MASK, VOCAB, alone, decoded, random_case, random_step

from data import DESCRIBE, pad_prompts, toy
from lab.checkpoint import ROOT, SHIPPED, load
from mini_dimple import confident, decode, full, prefilled
from rules import RuleError, checked, named, resolve, resolve_look



def pytest_generate_tests(metafunc):
    """`any_rule`: those of --rule, else all that are built in."""
    if "any_rule" in metafunc.fixturenames:
        mine = metafunc.config.getoption("--rule") or []
        try:
            for text in mine:
                resolve(text)
        except ValueError as error:
            raise pytest.UsageError(error) from None
        metafunc.parametrize("any_rule", mine or named())


# ---------------------------------------------------------------- what any rule must do

def require(truth, text, message):
    """A failure of the rule's, not of the test: no listing of the test's code."""
    if not truth:
        pytest.fail(f"{text}: {message}", pytrace=False)


def by_rule(text, case, draw=0):
    """Decode by a rule, with `draw` the seed of what it draws. Its own mistakes fail the test."""
    torch.manual_seed(draw)
    try:
        return decoded(*case, resolve(text), generator=torch.Generator().manual_seed(draw))
    except (ValueError, RuleError) as error:
        B, W = case[-1].shape
        said = f"with {B} examples and a window of {W} tokens: {error}"
    require(False, text, said)


def test_any_rule_keeps_given_tokens_and_leaves_no_mask(any_rule, seed):
    *_, window = case = random_case(seed, 16, 12)
    out = by_rule(any_rule, case)
    for given, row in zip(window.tolist(), out.tokens.tolist()):
        kept = all(row[i] == token for i, token in enumerate(given) if token != MASK)
        require(kept and MASK not in row, any_rule, f"the window {given} became {row}")


def test_any_rule_decodes_a_batch_as_each_example_alone(any_rule, seed):
    case = random_case(seed, 8, 12)
    batch, again = by_rule(any_rule, case), by_rule(any_rule, case, draw=1)
    if not (torch.equal(batch.tokens, again.tokens) and torch.equal(batch.passes, again.passes)):
        pytest.skip(f"{any_rule} draws at random")
    if batch.tokens.shape[1] != 12:
        pytest.skip(f"{any_rule} changes the window's length, which the examples of a batch share")
    for b in range(8):
        one = by_rule(any_rule, alone(case, b))
        for name in ("tokens", "iterations", "passes"):
            here, wanted = getattr(batch, name)[b].tolist(), getattr(one, name)[0].tolist()
            message = f"example {b} of 8 has {name} {here}, alone {wanted}. What is done with one "
            message += "depends on the others: reduce over dim=1, not over all, and keep a row for "
            message += "each example in step.memory"
            require(here == wanted, any_rule, message)


@pytest.fixture(scope="module")
def scenes():
    """The shipped weights and three held-out scenes."""
    model, tokenizer, _ = load(SHIPPED)
    split = toy.examples(toy.TOYS["tiny"], 3, 0, held_out=True, instruction=DESCRIBE)
    prompts = pad_prompts(split.prompts, tokenizer, model.config.prompt_tokens)
    return model, split.images, prompts, torch.full((3, model.config.window), tokenizer.mask_id)


def test_any_rule_comes_to_its_end(any_rule, scenes):
    """Before the limit of passes, which is there for rules that would go on for ever."""
    out = by_rule(any_rule, scenes)
    require(not out.left.any(), any_rule, f"after {out.passes.tolist()} passes of the shipped "
            f"weights, the limit filled the {out.left.tolist()} masks that were left in three "
            "captions. Does it take back what it commits, or grow the window, for ever?")


ALONE = test_any_rule_decodes_a_batch_as_each_example_alone
KEEPS = test_any_rule_keeps_given_tokens_and_leaves_no_mask
ENDS = test_any_rule_comes_to_its_end


@pytest.mark.parametrize("body, test, message", [
    ("step.confidence > step.confidence[step.masked].mean()", ALONE, "depends on the others"),
    ("step.masked & step.masked.all()", ALONE, "depends on the others"),
    ("step.masked[1]", KEEPS, "with 16 examples and a window of 12 tokens: .*it must return"),
    ("1 / 0", KEEPS, "mine.py, line 1, .*ZeroDivisionError"),
    ("step.tokens", ENDS, "after .96, 96, 96. passes .* filled the .48, 48, 48. masks"),
    ("step.tokens.repeat(1, 99)", ENDS, "expected at most 4096 positions"),
])
def test_a_rule_that_does_not_is_told_why(body, test, message, scenes, tmp_path):
    (tmp_path / "mine.py").write_text(f"def rule(step): return {body}\n")
    with pytest.raises(pytest.fail.Exception, match=message) as error:
        test(f"{tmp_path}/mine.py", scenes if test is ENDS else 0)
    assert "mine.py" in str(error.value)


@pytest.mark.parametrize("source", ["", ", generator=step.generator"])
def test_a_rule_that_draws_is_not_compared(source, tmp_path):
    code = f"import torch\ndef rule(step): return torch.rand(step.masked.shape{source}) < 0.4\n"
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(pytest.skip.Exception, match="draws at random"):
        ALONE(f"{tmp_path}/mine.py", 0)


@pytest.mark.slow
def test_the_option_checks_its_files_and_nothing_else(tmp_path):
    (tmp_path / "mine.py").write_text("def rule(step, k=3):\n"
                                      "    return step.confidence > step.confidence.mean()\n")
    (tmp_path / "good.py").write_text("rule = lambda step: step.confidence > 0.5")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
             ROOT / "tests" / "test_rules.py", "--rule", "good.py", "--rule", "mine.py:7"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert "3 failed, 11 passed" in done.stdout, done.stdout + done.stderr
    assert "mine.py:7: example" in done.stdout and "depends on the others" in done.stdout
    words[-1] = "nine.py"
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert "--rule nine.py: nine.py does not exist" in done.stdout


# ---------------------------------------------------------------- from a word to a rule

@pytest.mark.parametrize("case", range(8))
def test_a_one_line_rule_in_a_file_equals_confident(case, tmp_path):
    for name, code in (("plain", "rule = lambda step: step.confidence > 0.3"),
                       ("number", "def rule(step, tau=0.9): return step.confidence > tau"),
                       ("window", "def rule(step): return step.commit(step.confidence > 0.3)")):
        (tmp_path / f"{name}.py").write_text(code)
    inputs = random_case(case, 16, 12)
    built_in = decoded(*inputs, confident(0.3))
    files = [f"{tmp_path}/{text}" for text in ("plain.py", "number.py:0.3", "number.py:tau=0.3",
                                               "window.py")]
    for text in (*files, "confident:0.3", "confident:threshold=0.3"):
        out = decoded(*inputs, resolve(text))
        assert torch.equal(out.tokens, built_in.tokens) and torch.equal(out.passes, built_in.passes)


@pytest.mark.parametrize("numbers, handed", [
    ("", "1, 0.5"), (":7", "7, 0.5"), (":7.0", "7.0, 0.5"), (":1e1", "10.0, 0.5"),
    (":0", "0, 0.5"), (":3,4", "3, 4"), (":eps=2", "1, 2"), (":k=0.6,eps=0.01", "0.6, 0.01"),
    (":eps=0.01, k=5", "5, 0.01"), (":2,eps=0", "2, 0"),
])
def test_numbers_are_handed_over_as_they_are_written(numbers, handed, tmp_path):
    """Whole ones as int, for topk(k) and range(k); by name, too. The file's stem names the rule."""
    code = "def rule(step, k=1, eps=0.5): raise ValueError(f'{k!r}, {eps!r}.')"
    (tmp_path / "mine.py").write_text(code)
    rule = resolve(f"{tmp_path}/mine.py{numbers}")
    assert rule.__name__ == "mine" + numbers
    with pytest.raises(RuleError, match=f"rule 'mine{numbers}': .*ValueError: {handed}[.]$"):
        rule(random_step(0))


def test_odd_files_that_are_rules(tmp_path):
    """A colon in the path; a dataclass with postponed annotations; a function that does not tell
    its parameters."""
    (tmp_path / "a:b").mkdir()
    path = tmp_path / "a:b" / "mine.py"
    path.write_text("from __future__ import annotations\nfrom dataclasses import dataclass\n"
                    "@dataclass\nclass Count:\n    k: int\n"
                    "def rule(step, k=1): return step.masked | (Count(k).k > 0)\n")
    for text, name in ((str(path), "mine"), (f"{path}:4", "mine:4")):
        assert resolve(text)(random_step(0)).all() and resolve(text).__name__ == name
    path.write_text("rule = max")
    assert resolve(f"{path}:4").__name__ == "mine:4"


@pytest.mark.parametrize("text, message", [
    ("other", "unknown; choose one of confident, "), ("__init__", "unknown"), ("", "unknown"),
    ("none/mine.py", "does not exist"), ("maskgit:x", "'x' is not a number"),
    ("maskgit:-1", "0 or more"), ("maskgit:nan", "0 or more"), ("maskgit:inf", "0 or more"),
    ("maskgit:4,", "'' is not a number"),
    ("maskgit:4,5", "too many positional arguments; `rule` takes k"),
    ("maskgit:n=4", "unexpected keyword argument 'n'; `rule` takes k"),
    ("confident:2", "at most 1"), ("confident:0", "above 0"), ("confident:0.9,3", "argument"),
    ("confident:tau=0.9", "tau"),
])
def test_rules_that_do_not_resolve(text, message):
    with pytest.raises(ValueError, match=message) as error:
        resolve(text)
    assert str(error.value).startswith(f"--rule {text}: ")


@pytest.mark.parametrize("code, message", [
    ("import sys\nsys.exit('bye')", "SystemExit: bye"),
    ("def rule(step:", "SyntaxError: .*mine.py, line 1"),
    ("import nothing_of_this_name", "ModuleNotFoundError"),
    ("rules = 1", "no function `rule"), ("rule = 3", "no function `rule"),
])
def test_files_that_hold_no_rule(code, message, tmp_path):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(ValueError, match=message):
        resolve(f"{tmp_path}/mine.py")


def test_a_rule_without_numbers_takes_none(tmp_path):
    (tmp_path / "mine.py").write_text("def rule(step): return step.masked")
    with pytest.raises(ValueError, match="`rule` takes no number"):
        resolve(f"{tmp_path}/mine.py:3")


# ---------------------------------------------------------------- answers that the loop cannot take

@pytest.mark.parametrize("answer, got", [
    (lambda step: None, "NoneType"), (lambda step: 1, "int"),
    (lambda step: (step.masked, step.masked), "tuple"),
    (lambda step: step.confidence, "torch.float64 (4, 9) on cpu"),
    (lambda step: step.masked.byte(), "torch.uint8 (4, 9) on cpu"),
    (lambda step: step.masked[0], "torch.bool (9,) on cpu"),
    (lambda step: step.masked[:, :5], "torch.bool (4, 5) on cpu"),
    (lambda step: step.masked[:1], "torch.bool (1, 9) on cpu"),
    (lambda step: step.masked.to("meta"), "torch.bool (4, 9) on meta"),
    (lambda step: step.tokens.int(), "torch.int32 (4, 9) on cpu"),
    (lambda step: step.tokens[0], "torch.int64 (9,) on cpu"),
    (lambda step: step.tokens[:3], "torch.int64 (3, 9) on cpu"),
    (lambda step: step.tokens[:, :0], "torch.int64 (4, 0) on cpu"),
    (lambda step: step.tokens[..., None], "torch.int64 (4, 9, 1) on cpu"),
    (lambda step: step.tokens.to("meta"), "torch.int64 (4, 9) on meta"),
])
def test_answers_of_another_kind(answer, got):
    with pytest.raises(RuleError) as error:
        checked(answer, "mine:3")(random_step(0))
    assert str(error.value) == (
        "decoding rule 'mine:3': it must return positions to commit, torch.bool (4, 9) on cpu, or "
        f"the next window, torch.int64 (4, any length), not {got}")


@pytest.mark.parametrize("rule, message", [
    (lambda step: step.tokens * 0 + VOCAB, "its window holds ids from 20 to 20"),
    (lambda step: step.tokens * 0 - 1, "its window holds ids from -1 to -1"),
])
def test_answers_that_commit_what_is_no_token(rule, message):
    with pytest.raises(RuleError, match=re.escape(message)) as error:
        checked(rule, "mine:3")(random_step(0))
    assert str(error.value).startswith("decoding rule 'mine:3': ")


@pytest.mark.parametrize("rule", [
    lambda step: step.confidence > 0.5, lambda step: step.tokens, lambda step: step.tokens[:, :1],
    lambda step: step.tokens.repeat(1, 2)])
def test_other_answers_pass_as_they_are(rule):
    assert torch.equal(checked(rule, "mine")(random_step(0)), rule(random_step(0)))


@pytest.mark.parametrize("code, line, text, message", [
    ("def rule(step):\n    k = 1\n    return k / 0", 3, "return k / 0", "ZeroDivisionError: "),
    ("def rule(step):\n    return step.nothing", 2, "return step.nothing", "AttributeError: "),
    ("def part(step):\n    return step.masked[5]\n\ndef rule(step):\n    return part(step)",
     2, "return step.masked[5]", "IndexError: "),
    ("import sys\ndef rule(step):\n    sys.exit()", 3, "sys.exit()", "SystemExit: "),
    ("import torch\ndef rule(step):\n    return torch.cat([step.masked, step.tokens[0]])",
     3, "return torch.cat([step.masked, step.tokens[0]])", "RuntimeError: "),
    ("def rule(step):\n    return step.look(step.tokens[:1])",
     2, "return step.look(step.tokens[:1])", "RuntimeError: "),
    ("def rule(step):\n    step.rescore(0 * step.probs / 0)\n    return step.masked",
     2, "step.rescore(0 * step.probs / 0)", "ValueError: logits: expected numbers, got a NaN"),
    ("def rule(step):\n    step.score(step.logits)\n    return step.masked",
     2, "step.score(step.logits)", "AttributeError: step.score(logits) is step.rescore(logits) "),
])
def test_a_rule_that_fails_is_told_with_file_and_line(code, line, text, message, tmp_path,
                                                      monkeypatch):
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    for path in (f"{tmp_path}/mine.py", "mine.py", f"../{tmp_path.name}/mine.py"):
        with pytest.raises(RuleError) as error:
            decoded(*random_case(0, 2, 5, priors=False), resolve(path))
        where = f"decoding rule 'mine': {path}, line {line}, `{text}`: {message}"
        assert str(error.value).startswith(where)


# ---------------------------------------------------------------- looks

def test_looks_by_name_and_from_a_file(tmp_path):
    assert resolve_look("full") is full and resolve_look("prefilled") is prefilled
    (tmp_path / "mine.py").write_text("from mini_dimple import full as look")
    mine, case = resolve_look(f"{tmp_path}/mine.py"), random_case(0, 8, 12)
    assert mine.__name__ == "mine"
    assert torch.equal(decoded(*case, look=mine).tokens, decoded(*case, look=full).tokens)
    model, images, prompt, window = case
    made = mine(model, images, prompt)
    first, again = (decode(made, window, model.config).tokens for _ in "ab")
    assert torch.equal(first, again)


LOGITS = "it must return logits (2, 5, 20) on cpu, not "


@pytest.mark.parametrize("body, message", [
    ("return 1 / 0", "mine.py, line 3, `return 1 / 0`: ZeroDivisionError"),
    ("return lambda tokens, state: tokens.x",
     "line 3, `return lambda tokens, state: tokens.x`: AttributeError"),
    ("sys.exit()", "mine.py, line 3, `sys.exit()`: SystemExit"),
    ("return None", "TypeError: 'NoneType' object is not callable"),
    ("return lambda tokens: tokens", "takes 1 positional argument but 2 were given"),
    ("return lambda tokens, state: tokens", "look(tokens, state) must return two things"),
    ("return lambda tokens, state: (None, state)", LOGITS + "NoneType"),
    ("return lambda *_: (torch.zeros(2, 5, 19), None)", LOGITS + "torch.Size([2, 5, 19])"),
    ("return lambda *_: (torch.zeros(1, 5, 20), None)", LOGITS + "torch.Size([1, 5, 20])"),
    ("return lambda *_: (torch.zeros(2, 5, 20).long(), None)", LOGITS),
    ("return lambda *_: (torch.zeros(2, 5, 20, device='meta'), None)", LOGITS),
])
def test_looks_that_fail_are_told(body, message, tmp_path):
    code = f"import sys, torch\ndef look(model, images, prompt):\n    {body}\n"
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(RuleError, match=re.escape(message)) as error:
        decoded(*random_case(0, 2, 5, priors=False), look=resolve_look(f"{tmp_path}/mine.py"))
    assert str(error.value).startswith("look 'mine': ")


@pytest.mark.parametrize("text, message", [
    ("fast", "unknown; choose one of prefilled, full, or the path of a .py file"),
    ("maskgit", "unknown"), ("none.py", "does not exist"),
    (f"{ROOT}/rules/maskgit.py", "defines no function `look`"),
])
def test_looks_that_do_not_resolve(text, message):
    with pytest.raises(ValueError, match=message) as error:
        resolve_look(text)
    assert str(error.value).startswith(f"--look {text}: ")
