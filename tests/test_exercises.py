"""The exercises: each stub fails, each answer passes, and so does a right answer that is not like
ours; an answer with one mistake in it fails."""
import io
import re
import subprocess
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import pytest

from conftest import refused_by
from data import toy
from exercises import __main__ as runner, checks
from exercises.checks import exact_posterior
from lab.grading import apart
from rules import resolve

EXERCISES = Path(__file__).parent.parent / "exercises"
NAMES = {path.stem[:2]: path.stem for path in sorted(EXERCISES.glob("[0-9]*.py"))}
LONG = "05", "06", "08", "09", "11", "14", "15"  # their checkers decode many pictures


def params(rows, slow=LONG):
    return [pytest.param(*row, marks=[pytest.mark.slow] * (row[0] in slow)) for row in rows]


def answer(number):
    return (EXERCISES / "answers" / f"{NAMES[number]}.py").read_text()


@pytest.fixture
def check(tmp_path):
    """-> of an exercise's number and a source: whether it passes; the lesson, or what it shows."""
    def checked(number, source):
        path = tmp_path / f"{NAMES[number]}.py"
        path.write_text(source)
        passes, text, _ = checks.check(lambda words: None, path)
        assert "The checker did not expect this" not in text, text
        return passes, text
    return checked


def test_each_exercise_has_a_task_a_checker_and_an_answer():
    assert [int(number) for number in NAMES] == list(range(1, len(NAMES) + 1))
    for folder, pattern in (("checks", "[a-z]*"), ("answers", "[0-9]*")):
        found = {path.stem for path in (EXERCISES / folder).glob(f"{pattern}.py")}
        assert found == {name[3 * (folder == "checks"):] for name in NAMES.values()}
    for number, name in NAMES.items():
        task = (EXERCISES / f"{name}.py").read_text()
        assert task.startswith(f'"""Exercise {int(number)}: ')
        assert re.search("\nPaper: |\nNot part of Dimple: ", task)
        assert "Compare afterwards: " in task
        assert f"\nCheck: python -m exercises {int(number)}\n" in task


@pytest.mark.parametrize("number", NAMES)
def test_the_stub_fails(number, check):
    passes, text = check(number, (EXERCISES / f"{NAMES[number]}.py").read_text())
    assert not passes and re.search("is not written yet|no guess yet", text)


@pytest.mark.parametrize("number", params([[number] for number in NAMES]))
def test_our_answer_passes_and_shows_something(number, check):
    passes, text = check(number, answer(number))
    assert passes, text
    assert 4 <= len(text.splitlines()) <= 14 and text.isascii(), "on any screen"


# a loop's end, a mask, ... : what is changed in the answer, and into what
AVERAGE = "((nll * masked).sum(1) / t).mean() / W"
OPEN = "sure.scatter(1, open_choices.argmax(1, keepdim=True), True)"
MEAN = "(step.confidence * masked) @ of_block / left"
AGREES = "((captions == tokens) | (tokens == mask_id)).all(1)"
PAIRS = "(probs[i, pairs[:, 0]] * probs[j, pairs[:, 1]]).sum()"
ERROR = "single(*scene, places=places).sum() - entropy(*scene, places)"
TIED = "torch.special.entr(torch.tensor([p, 1 - p])).sum()"
LENGTH = "int(torch.randint(shortest, longest + 1, (), generator=generator))"
MISTAKES = [
    ("01", "t[:, None]", "t[:1, None]"),
    ("01", "< t[:, None]", "> t[:, None]"),
    ("01", "torch.rand(response.shape)", "torch.rand(len(response), 1).expand(response.shape)"),
    ("01", "torch.rand(response.shape)", "torch.rand(response.shape[1]).expand(response.shape)"),
    ("01", "torch.rand(response.shape) < t[:, None]",
     "torch.rand(response.shape).argsort(1).argsort(1) < (t[:, None] * response.shape[1])"),
    ("01", "response.masked_fill(", "response.masked_fill_("),
    ("01", "< t[:, None]", "< t[:, None] * (response != mask_id - 1)"),
    ("01", "torch.rand(B)", "torch.rand(B) ** 2"),
    ("01", "EPS + (1 - EPS) *", ""),
    ("02", "hidden[:, -W - 1:-1]", "hidden[:, -W:]"),
    ("02", "(nll * masked)", "nll"),
    ("02", AVERAGE, "nll[masked].mean()"),
    ("02", AVERAGE, "((nll * masked).sum(1)).mean() / W"),
    ("02", "causal=False", "causal=True"),
    ("02", "model.embedding(noisy)", "model.embedding(response)"),
    ("02", ".mean() / W", ".mean().detach() / W"),
    ("02", "model.head(hidden", "model.head(hidden.detach()"),
    ("02", "/ t).mean() / W", "/ t / masked.any(1)).mean() / W"),
    ("03", ".triu(1)", ".tril(-1)"),
    ("03", ".triu(1)", ".triu(2)"),
    ("03", "if causal:", "if True:"),
    ("03", " / math.sqrt(q.shape[-1])", ""),
    ("03", "scores = q @", "scores = q.div_(2) @"),
    ("03", "scores = scores.masked_fill(future, -torch.inf)",
     "return scores.softmax(-1).masked_fill(future, 0) @ v"),
    ("04", "commit.any(1, keepdim=True)", "commit.any()"),
    ("04", "probs = logits.softmax(-1)", "probs = (logits / (temperature or 1)).softmax(-1)"),
    ("04", "(logits / temperature)", "logits"),
    ("04", "logits[..., mask_id] = -torch.inf", "pass"),
    ("04", "iterations += masked.any(1)", "iterations += 1"),
    ("04", "tokens = torch.where(commit, proposal, tokens)",
     "window[commit] = proposal[commit]; tokens = window"),
    ("04", "> threshold", "> threshold / 2"),
    ("05", OPEN, "step.confidence > 0.5"),
    ("05", OPEN, "sure"),
    ("05", OPEN, "sure | (open_choices == open_choices.max())"),
    ("05", "    sure = ", "    step.look(step.tokens)\n    sure = "),
    ("06", "prefix.shape[1] - 1", "prefix.shape[1]"),
    ("06", "[(k[:, :, :kept], v[:, :, :kept]) for k, v in cache]", "cache"),
    ("06", "    return cache", "    return [(v, v) for _, v in cache]"),
    ("06", "hidden[:, -W - 1:-1]", "hidden[:, -W:]"),
    ("06", "causal=False, past=past", "causal=False"),
    ("06", "causal=causal", "causal=True"),
    ("06", 'WHY = "c"', 'WHY = "b"'),
    ("07", '"( *_|', '"(_|'),
    ("07", 'r"( *_|<end>)", template', 'r"(<end>)", template'),
    ("07", "[], tokenizer.mask_id", "[], tokenizer.eos_id"),
    ("07", "rest = tokenizer.eos_id", "ids += [tokenizer.eos_id]"),
    ("07", "window.expand(len(images), -1)",
     "torch.full_like(window, tokenizer.mask_id).expand(len(images), -1)"),
    ("08", MEAN, "step.confidence @ of_block * (left > 0)"),
    ("08", MEAN, "(step.confidence * masked) @ of_block"),
    ("08", MEAN, "(left > 0) * torch.arange(len(of_block.T), 0, -1)"),
    ("08", "torch.where(done, surest, current)", "surest"),
    ("08", "torch.where(done, surest, current)",
     "torch.where(done, surest, current)[:1].expand(len(masked))"),
    ("08", 'step.memory.get("block", surest)',
     "globals().get('kept', surest)[:len(surest)]; globals()['kept'] = current"),
    ("08", "confidence > 0.9", "confidence > 0.7"),
    ("09", "1 - draws_the_second ** n", "draws_the_second ** n"),
    ("09", "1 - draws_the_second ** n", "(1 - draws_the_second) ** n"),
    ("09", "1 - draws_the_second ** n", "p"),
    ("09", "p ** (1 / temperature), (1 - p) ** (1 / temperature)", "p, 1 - p"),
    ("09", "step.probs.amax(-1).masked", "step.confidence.masked"),
    ("09", ".masked_fill(~step.masked, -1)", ""),
    ("09", ".scatter(1, best, True)", ""),
    ("09", "argmax(1, keepdim=True)", "amax(0, keepdim=True).argmax(1, keepdim=True).expand(4, 1)"),
    ("09", "    best = ", "    step.propose(step.probs.argmax(-1))\n    best = "),
    ("10", "torch.cat([x, x]) for x", "x.repeat_interleave(2, 0) for x"),
    ("10", "return images, prompt, response,", "return images, prompt, response.roll(1, 0),"),
    ("10", "(1 - t).clamp(min=EPS)", "t"),
    ("10", ".clamp(min=EPS)", ""),
    ("10", "torch.cat([masked, ~masked])", "torch.cat([masked, masked])"),
    ("10", "response.masked_fill(masked, mask_id)",
     "response.masked_fill(masked.roll(len(masked) // 2, 0), mask_id)"),
    ("11", "(30, 50)", "(90, 100)"),
    ("11", "(30, 50)", "(0, 100)"),
    ("12", "odds * agreeing(", "agreeing("),
    ("12", "odds * agreeing(captions, tokens, mask_id)", "odds"),
    ("12", AGREES, "(captions == tokens).any(1) | (tokens == mask_id).all()"),
    ("12", "    weight = odds * agreeing(captions, tokens, mask_id)\n",
     "    odds[~agreeing(captions, tokens, mask_id)] = 0\n    weight = odds\n"),
    ("12", PAIRS, "(probs[i] * probs[j]).sum()"),
    ("12", ".unique(dim=0)", ""),
    ("13", "odds * (", "1.0 * ("),
    ("13", "torch.special.entr(probs).sum()", "-(probs * probs.log()).sum()"),
    ("13", ERROR, "entropy(*scene, places)"),
    ("13", "entropies.max()", "entropies.min()"),
    ("13", f"return {TIED}", "return torch.log(torch.tensor(2.0))"),
    ("14", "longest + 1", "longest"),
    ("14", "responses)) + 1", "responses))"),
    ("14", LENGTH, "max(shortest, int(torch.randint(1, longest + 1, (), generator=generator)))"),
    ("14", ", generator=generator)", ")"),
    ("14", "ids + [eos_id] * (W - len(ids))", "[eos_id] * (W - len(ids)) + ids"),
    ("14", "return step.confidence > 0.9", "return step.confidence > 0.5"),
    ("14", "return step.tokens[:, :longest]", "pass"),
    ("14", "return step.tokens[:, :longest]",
     "return step.commit(step.confidence > 0.9)[:, :longest]"),
    ("15", "commit.scatter(1, open_choices.argmax(1, keepdim=True), True)", "commit"),
    ("15", "sure=0.6", "sure=0.3"),
    ("15", "(now < doubtful) & (times < most)", "(now < 2)"),
    ("15", "    now = ", "    step.look(window)\n    now = "),
    ("15", "sure=0.6, doubtful=0.1", "sure=0.9, doubtful=-1.0"),  # exercise 5's answer
]


@pytest.mark.parametrize("number, old, new", params(MISTAKES, slow=("05", "11", "15")))
def test_a_mistake_fails(number, old, new, check):
    source = answer(number)
    assert source.count(old) == 1, "the mistake must be made in one place"
    passes, text = check(number, source.replace(old, new))
    assert not passes and "Error: " not in text, text


@pytest.mark.parametrize("number, old, new, hint", [
    ("04", "commit = torch.where(commit.any(1, keepdim=True), commit, best)",
     "rows = (~commit.any(1)).nonzero()[:, 0]; commit[rows, top[rows, 0]] = True",
     "is for examples that still have a"),
    ("13", "probs = torch.zeros(len(captions)).index_add(0, outcome, weight / weight.sum())",
     "probs = torch.zeros(len(captions)).index_add(0, outcome, weight)", "divide by their sum")])
def test_a_mistake_is_told_by_its_name(number, old, new, hint, check):
    source = answer(number)
    assert source.count(old) == 1
    passes, text = check(number, source.replace(old, new))
    assert not passes and hint in " ".join(text.split())


@pytest.mark.slow
def test_exercise_15_has_a_hint_for_each_model(check):
    careful = "def rule(step):\n    return step.confidence > 0.99\n"
    for source, hint in ((careful, "is sure at once"),
                         (answer("15").replace("sure=0.6", "sure=0.99"), "lets them go")):
        passes, text = check("15", source)
        assert not passes and hint in text


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["remask:0.5", "remask:0.6", "eb_sampler:0.5", "confident:0.9",
                                  "middle_out"])
def test_of_the_gallery_middle_out_alone_passes_exercise_15(rule, check):
    passes, _ = check("15", f"from rules import resolve\nrule = resolve({rule!r})\n")
    assert passes == (rule == "middle_out")


OTHERS = {  # right answers that are not like ours
    "04": """
import torch
def decode(model, images, prompt, window, threshold, temperature=0.0):
    mask, out, counts = model.config.mask_id, window.clone(), torch.zeros(len(window), dtype=int)
    for b in range(len(window)):
        while (out[b] == mask).any():
            with torch.no_grad():
                logits = model(*(x[b:b + 1] for x in (images, prompt, out)), causal=False)[0]
            logits[:, mask] = -torch.inf
            probs = logits.softmax(-1)
            drawn = (torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]
                     if temperature else probs.argmax(-1))
            sure = probs.gather(1, drawn[:, None])[:, 0].masked_fill(out[b] != mask, 0)
            commit = sure > threshold if (sure > threshold).any() else sure == sure.max()
            out[b, commit] = drawn[commit]
            counts[b] += 1
    return out, counts
""", "05": """
from rules.eb_sampler import rule
""", "08": """
import torch
def rule(step, k=16):  # remembers nothing: a begun block has tokens that were not given
    commit = torch.zeros_like(step.masked)
    for b, masked in enumerate(step.masked):
        blocks = [range(i, min(i + k, len(masked))) for i in range(0, len(masked), k)]
        blocks = [block for block in blocks if any(masked[i] for i in block)]
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
""", "09": """
import itertools
import torch
def likelier_wins(p, n, temperature=1.0):
    weight, share = [q ** (1 / temperature) for q in (p, 1 - p)], 0
    for words in itertools.product((0, 1), repeat=n):  # what the n places draw
        chance = torch.tensor([weight[word] / sum(weight) for word in words]).prod().item()
        share += chance * (min(words) == 0)
    return share
def rule(step, threshold=0.9):
    named = torch.zeros_like(step.masked)
    for b, masked in enumerate(step.masked.tolist()):
        best = {i: step.probs[b, i].max() for i, here in enumerate(masked) if here}
        for i in [i for i in best if best[i] > threshold] or sorted(best, key=best.get)[-1:]:
            named[b, i] = True
    return named
""", "10": """
import torch
def twins(images, prompt, response, masked, t, mask_id):
    images, prompt, response = (x.repeat_interleave(2, dim=0) for x in (images, prompt, response))
    masked = torch.stack([masked, ~masked], 1).flatten(0, 1)
    t = torch.stack([t, torch.maximum(1 - t, torch.tensor(1e-3))], 1).flatten()
    return images, prompt, response, torch.where(masked, mask_id, response), masked, t
""", "13": """
import math
from collections import Counter
def outcomes(captions, odds, tokens, mask_id, places):
    found = Counter()
    for caption, share in zip(captions.tolist(), odds.tolist()):
        if all(t in (c, mask_id) for c, t in zip(caption, tokens.tolist())):
            found[tuple(caption[i] for i in places)] += share
    return {key: share / sum(found.values()) for key, share in found.items()}
def joint_error(captions, odds, tokens, mask_id, places):
    scene = captions, odds, tokens, mask_id
    alone = [outcomes(*scene, [i]) for i in places]
    return sum(p * math.log(p / math.prod(q[(token,)] for q, token in zip(alone, key)))
               for key, p in outcomes(*scene, places).items())
def bound(captions, odds, tokens, mask_id, places):
    each = sorted(-sum(p * math.log(p) for p in outcomes(
        captions, odds, tokens, mask_id, [i]).values()) for i in places)
    return sum(each[:-1])
def breaks_at(p):
    return p * math.log(1 / p) + (1 - p) * math.log(1 / (1 - p))
""", "14": """
import torch
def pad(responses, longest, eos_id, generator):
    start = max(len(ids) for ids in responses) + 1
    W = start + torch.randperm(longest + 1 - start, generator=generator)[0].item()
    out = torch.full((len(responses), W), eos_id)
    for b, ids in enumerate(responses):
        out[b, :len(ids)] = torch.tensor(ids)
    return out
def eos_share(lengths, W):
    return (torch.arange(W) >= lengths[:, None]).float().mean().item()
def rule(step, longest=48):
    if step.tokens.shape[1] > longest:
        step.tokens = step.tokens[:, :longest]
        step.masked = step.tokens == step.mask_id
        step.rescore(step.look(step.tokens))
    return step.commit(step.confidence > 0.9)
""", "15": """
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
"""}


@pytest.mark.parametrize("number", params([[number] for number in OTHERS]))
def test_another_right_answer_passes(number, check):
    passes, text = check(number, OTHERS[number])
    assert passes, text


# ---------------------------------------------------------------- what they show, and go by

@pytest.mark.slow
def test_the_stretch_goal_of_exercise_5_is_reached_by_the_answer_that_says_so(check):
    source = answer("05").replace("def rule(", "def modest(").replace("def bold(", "def rule(")
    assert "reached" in check("05", source)[1] and "not yet" in check("05", answer("05"))[1]


def test_entropy_bound_breaks_where_the_answer_of_exercise_13_says(check):
    text = check("13", answer("13"))[1]
    below, above, _ = re.findall(r"eb_sampler:\d.\d+ +(\d+.\d)% right", text)
    assert float(below) == 100 and float(above) < 50


def test_the_captions_of_exercise_12_are_all_right_ones_of_a_scene():
    some, (_, tokenizer) = exact_posterior.told(2, "free"), checks.shipped()
    texts = [tokenizer.decode(ids) for ids in some.captions.tolist()]
    board = toy.TOYS["tiny"]._replace(order="free")
    assert len({frozenset(toy.parse(text, board)) for text in texts}) == 1
    assert len(set(texts)) == len(texts) == 4 * 2 * 4 * 2
    assert some.odds.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("number, numbers", [("05", ""), ("08", ":16"), ("09", ":0.9"),
                                             ("15", ":0.6")])
def test_a_rule_of_the_course_goes_to_the_board_from_its_own_file(number, numbers):
    rule = resolve(f"{EXERCISES / 'answers' / NAMES[number]}.py{numbers}")
    assert sum(checks.measured(rule, 8).right) >= 7


# ---------------------------------------------------------------- python -m exercises

@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder of somebody's files for exercises 1 and 10, none right yet; there are no others.
    They are checked here, without a process for each."""
    def here(work, *args, quiet, **_):
        with redirect_stdout(io.StringIO()) if quiet else nullcontext():
            return work(lambda words: None, *args)
    monkeypatch.setattr(runner, "apart", here)
    monkeypatch.setattr(runner, "NAMES", {n: NAMES[f"{n:02d}"] for n in (1, 10)})
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


def test_all_exercises_are_a_line_each(desk, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    noisy = "print('not for this list')\n" + answer("01").replace("< t[:, None]", "> t")
    (desk / f"{NAMES['01']}.py").write_text(noisy)
    assert ran("--folder", desk) == 1
    first, second, end = capfd.readouterr().out.splitlines()
    assert first.startswith(" 1  01_forward_process ") and first.endswith(" ...")
    assert second.endswith("twins is not written yet.") and end == "0 of 2 pass"
    assert max(len(first), len(second)) <= 80


def test_one_exercise_comes_with_its_whole_lesson_or_what_it_shows(desk, capfd):
    path = desk / f"{NAMES['10']}.py"
    path.write_text(answer("10").replace("(1 - t).clamp(min=EPS)", "print('mine') or t"))
    assert ran(10, "--folder", desk) == 1
    out = capfd.readouterr().out
    assert str(path) in out and "mine\n" in out and "does not pass yet (" in out
    path.write_text(answer("10"))
    assert ran(10, "--folder", desk) == 0 and "two drawn apart" in capfd.readouterr().out


def test_yours_are_copies_that_stay_and_ours_those_of_answers(desk, capfd, monkeypatch):
    monkeypatch.setattr(runner, "MINE", desk / "mine")
    assert ran() == 1
    out = capfd.readouterr().out
    assert out.startswith("2 exercises are new in exercises/mine")
    assert out.endswith("0 of 2 pass; next: python -m exercises 1\n")
    (desk / "mine" / f"{NAMES['10']}.py").write_text(answer("10"))
    assert ran() == 1
    assert capfd.readouterr().out.endswith("1 of 2 pass; next: python -m exercises 1\n")
    assert ran("--answers") == 0 and capfd.readouterr().out.endswith("2 of 2 pass\n")


@pytest.mark.parametrize("source, words", [
    ("def twins(:\n    pass", "Line 1: def twins.*\nSyntaxError"),
    ("import nothing_of_that_name", "Line 1: .*\nModuleNotFoundError"),
    ("def twins(*given):\n    exit()", "Line 2: exit.*\nSystemExit"), ("", "twins")])
def test_a_file_that_does_not_run_is_told_its_line(source, words, check):
    passes, text = check("10", source)
    assert not passes and re.search(words, text)


def test_an_endless_file_or_none_does_not_stop_the_others(desk, capfd, monkeypatch):
    monkeypatch.setattr(runner, "NAMES", {n: NAMES[f"{n:02d}"] for n in (1, 8, 9)})
    monkeypatch.setattr(runner, "apart", apart)
    monkeypatch.setenv("COLUMNS", "200")
    endless = "\n    while True:\n        pass\n"
    (desk / f"{NAMES['01']}.py").write_text(f"print('not here')\ndef draw_t(B):{endless}")
    (desk / f"{NAMES['08']}.py").write_text("import os\nos._exit(3)")
    assert ran("--timeout", 2, "--folder", desk) == 1
    first, second, third, end = capfd.readouterr().out.splitlines()
    assert re.search("not done after 2 s.*check 1 of .*levels.*line [34]", first)
    assert "exit code 3" in second and "no such file" in third and end == "0 of 3 pass"


@pytest.mark.parametrize("words, named", [
    ([0], "argument N"), ([77], "77"), (["--folder", "nowhere"], "--folder nowhere"),
    (["--timeout", 0], "--timeout"), (["--answers", "--folder", "x"], "not allowed with")])
def test_what_the_runner_refuses(words, named, desk, capsys):
    assert named in refused_by(runner.main)(capsys, *words)


@pytest.mark.slow
def test_the_command_in_the_repository_folder():
    command = [sys.executable, "-m", "exercises", "--answers", "1", "10"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=EXERCISES.parent)
    assert found.returncode == 0 and not found.stderr
    assert "restored" in found.stdout and "2 of 2 pass" in found.stdout
