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
from mini_dimple import confident, full, prefilled
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


def in_float32(*inputs):
    """A look whose logits are those of any decoding in float32. The model computes in float64, as
    a batch's products are then, once rounded, those of each example alone."""
    look = prefilled(*inputs)

    def rounded(tokens, state):
        logits, state = look(tokens, state)
        return logits.float(), state
    return rounded


def by_rule(text, case, draw=0):
    """Decode by a rule, with `draw` the seed of what it draws. Its own mistakes fail the test."""
    torch.manual_seed(draw)
    try:
        return decoded(*case, resolve(text), in_float32,
                       generator=torch.Generator().manual_seed(draw))
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


@pytest.mark.parametrize("body, test, named", [
    ("step.confidence > step.confidence[step.masked].mean()", ALONE, "step.memory"),
    ("step.masked[1]", KEEPS, "16 examples and a window of 12"), ("1 / 0", KEEPS, "line 1"),
    ("step.tokens", ENDS, "48, 48, 48"),
])
def test_a_rule_that_does_not_is_told_why(body, test, named, scenes, tmp_path):
    (tmp_path / "mine.py").write_text(f"def rule(step): return {body}\n")
    with pytest.raises(pytest.fail.Exception, match=named) as error:
        test(f"{tmp_path}/mine.py", scenes if test is ENDS else 0)
    assert "mine.py" in str(error.value)


def test_a_rule_that_draws_is_not_compared(tmp_path):
    code = "import torch\ndef rule(step): return torch.rand(step.masked.shape) < 0.4\n"
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(pytest.skip.Exception, match="mine.py"):
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

@pytest.mark.parametrize("text, code", [
    ("mine.py", "rule = lambda step: step.confidence > 0.3"),
    ("mine.py:0.3", "def rule(step, tau=0.9): return step.confidence > tau"),
    ("mine.py:tau=0.3", "def rule(step, tau=0.9): return step.confidence > tau"),
    ("mine.py", "def rule(step): return step.commit(step.confidence > 0.3)"),
])
def test_a_one_line_rule_in_a_file_equals_confident(text, code, tmp_path, seed):
    (tmp_path / "mine.py").write_text(code)
    inputs = random_case(seed, 16, 12)
    wanted = decoded(*inputs, confident(0.3))
    for same in (f"{tmp_path}/{text}", "confident:0.3", "confident:threshold=0.3"):
        out = decoded(*inputs, resolve(same))
        assert torch.equal(out.tokens, wanted.tokens) and torch.equal(out.passes, wanted.passes)


@pytest.mark.parametrize("numbers, handed", [
    ("", "1, 0.5"), (":7", "7, 0.5"), (":7.0", "7.0, 0.5"), (":1e1", "10.0, 0.5"), (":3,4", "3, 4"),
    (":eps=0.01, k=5", "5, 0.01"), (":2,eps=0", "2, 0"),
])
def test_numbers_are_handed_over_as_they_are_written(numbers, handed, tmp_path):
    """Whole ones as int, for topk(k) and range(k); by name, too. The file's stem names the rule."""
    code = "def rule(step, k=1, eps=0.5): raise ValueError(f'{k!r}, {eps!r}.')"
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(RuleError, match=f"'mine{numbers}': .*ValueError: {handed}[.]$"):
        resolve(f"{tmp_path}/mine.py{numbers}")(random_step(0))


def test_a_path_may_hold_a_colon(tmp_path):
    (tmp_path / "a:b").mkdir()
    path = tmp_path / "a:b" / "mine.py"
    path.write_text("def rule(step, k=1): return step.masked | (k > 0)\n")
    for text in (str(path), f"{path}:4"):
        assert resolve(text)(random_step(0)).all()


@pytest.mark.parametrize("text, named", [
    ("other", "confident, "), ("", "confident, "), ("none/mine.py", "exist"), ("maskgit:x", "'x'"),
    ("maskgit:-1", "0 or more"), ("maskgit:nan", "0 or more"), ("maskgit:4,5", "takes k"),
    ("maskgit:n=4", "'n'"), ("confident:2", "threshold 2"), ("confident:tau=0.9", "tau"),
])
def test_rules_that_do_not_resolve(text, named):
    with pytest.raises(ValueError, match=named) as error:
        resolve(text)
    assert str(error.value).startswith(f"--rule {text}: ")


@pytest.mark.parametrize("code, numbers, named", [
    ("import sys\nsys.exit('bye')", "", "bye"), ("def rule(step:", "", "mine.py, line 1"),
    ("import nothing_of_this_name", "", "nothing_of_this_name"), ("rule = 3", "", "`rule"),
    ("def rule(step): return step.masked", ":3", "`rule` takes no number"),
])
def test_files_that_hold_no_such_rule(code, numbers, named, tmp_path):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(ValueError, match=named):
        resolve(f"{tmp_path}/mine.py{numbers}")


# ---------------------------------------------------------------- answers that the loop cannot take

@pytest.mark.parametrize("answer, got", [
    (lambda step: None, "NoneType"), (lambda step: step.confidence, "torch.float64 (4, 9)"),
    (lambda step: step.masked[0], "torch.bool (9,)"),
    (lambda step: step.masked[:, :5], "torch.bool (4, 5)"),
    (lambda step: step.masked.to("meta"), "torch.bool (4, 9) on meta"),
    (lambda step: step.tokens[:3], "torch.int64 (3, 9)"),
    (lambda step: step.tokens[:, :0], "torch.int64 (4, 0)"),
    (lambda step: step.tokens * 0 + VOCAB, "20 to 20"),
    (lambda step: step.tokens * 0 - 1, "-1 to -1"),
])
def test_answers_that_the_loop_cannot_take(answer, got):
    with pytest.raises(RuleError, match=re.escape(got)) as error:
        checked(answer, "mine:3")(random_step(0))
    assert str(error.value).startswith("decoding rule 'mine:3': ")


@pytest.mark.parametrize("rule", [
    lambda step: step.confidence > 0.5, lambda step: step.tokens, lambda step: step.tokens[:, :1],
    lambda step: step.tokens.repeat(1, 2)])
def test_other_answers_pass_as_they_are(rule):
    assert torch.equal(checked(rule, "mine")(random_step(0)), rule(random_step(0)))


@pytest.mark.parametrize("code, line, text, error", [
    ("def part(step):\n    return step.masked[5]\n\ndef rule(step):\n    return part(step)",
     2, "return step.masked[5]", "IndexError: "),
    ("import sys\ndef rule(step):\n    sys.exit()", 3, "sys.exit()", "SystemExit: "),
    ("def rule(step):\n    return step.look(step.tokens[:1])",
     2, "return step.look(step.tokens[:1])", "RuntimeError: "),
    *((f"def rule(step):\n    {line}\n    return step.masked", 2, line,
       "ValueError: expected numbers, got a NaN") for line in (
        "step.rescore(0 * step.probs / 0)", "step.rescore(step.logits - float('inf'))",
        "step.probs /= 0 * step.probs; step.propose(step.probs.argmax(-1))",
        "step.confidence *= float('nan'); return step.commit(step.masked)")),
])
def test_a_rule_that_fails_is_told_with_file_and_line(code, line, text, error, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(RuleError) as told:
        decoded(*random_case(0, 2, 5, priors=False), resolve(str(path)))
    where = f"decoding rule 'mine': {path}, line {line}, `{text}`: {error}"
    assert str(told.value).startswith(where)


@pytest.mark.parametrize("measure", [
    "step.confidence * float('nan')", "0 * step.probs[..., 0].log()"])
def test_a_measure_of_the_rules_own_that_is_no_number_is_told(measure, tmp_path):
    (tmp_path / "mine.py").write_text(
        f"def rule(step):\n    step.probs[..., 0] = 0\n    step.confidence = {measure}\n"
        "    return step.confidence > 0.9")
    with pytest.raises(RuleError, match="rule 'mine': step.confidence: .*got a NaN"):
        decoded(*random_case(0, 2, 5, priors=False), resolve(f"{tmp_path}/mine.py"))


# ---------------------------------------------------------------- looks

def test_looks_by_name_and_from_a_file(tmp_path):
    assert resolve_look("full") is full and resolve_look("prefilled") is prefilled
    (tmp_path / "mine.py").write_text("from mini_dimple import full as look")
    mine, case = resolve_look(f"{tmp_path}/mine.py"), random_case(0, 8, 12)
    assert torch.equal(decoded(*case, look=mine).tokens, decoded(*case, look=full).tokens)


@pytest.mark.parametrize("body, named", [
    ("return 1 / 0", "mine.py, line 3, `return 1 / 0`: ZeroDivisionError"),
    ("return lambda tokens, state: tokens.x", "mine.py, line 3, "),
    ("return None", "NoneType"), ("return lambda tokens, state: tokens", "two things"),
    ("return lambda tokens, state: (None, state)", "(2, 5, 20) on cpu, not NoneType"),
    ("return lambda *_: (torch.zeros(2, 5, 19), None)", "not torch.Size([2, 5, 19])"),
    ("return lambda *_: (torch.zeros(2, 5, 20).long(), None)", "(2, 5, 20) on cpu, not "),
    *((f"return lambda *_: (torch.zeros(2, 5, 20) {broken}, None)", "got a NaN")
      for broken in ("/ 0", "- float('inf')", "+ torch.tensor([float('inf')] + [0] * 19)")),
])
def test_looks_that_fail_are_told(body, named, tmp_path):
    code = f"import torch\ndef look(model, images, prompt):\n    {body}\n"
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(RuleError, match=re.escape(named)) as error:
        decoded(*random_case(0, 2, 5, priors=False), look=resolve_look(f"{tmp_path}/mine.py"))
    assert str(error.value).startswith("look 'mine': ")


@pytest.mark.parametrize("text, named", [
    ("fast", "prefilled, full"), ("none.py", "exist"), (f"{ROOT}/rules/maskgit.py", "`look`")])
def test_looks_that_do_not_resolve(text, named):
    with pytest.raises(ValueError, match=named) as error:
        resolve_look(text)
    assert str(error.value).startswith(f"--look {text}: ")
