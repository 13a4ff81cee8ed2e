"""The lab's arithmetic, and that its commands run to their tables."""
import argparse
import contextlib
import csv
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_case, refused_by

import lab.__main__
import train
from data import toy
from lab import board, models, results, speed
from lab.checkpoint import ROOT, SHIPPED, SHIPPED_AR, SHIPPED_WEAK, load, save
from lab.claims import (CLAIMS, Asked, follow, in_nats, make_priors, nats_gap, sign_test, slope,
                        tau_b)
from lab.evaluate import Scenes, exact_way
from lab.intervals import gap_interval, mean_interval, share_interval, wilson
from lab.models import Lab, Recipe
from lab.variants import PrefixMasked, unseen
from mini_dimple import Dimple, decode, prefilled
from rules import resolve

main = lab.__main__.main
refused = refused_by(main)
CPU = torch.device("cpu")


def test_wilson_covers_what_it_should():
    assert wilson(0, 100)[0] == pytest.approx(0, abs=1e-12)
    assert wilson(100, 100)[1] == pytest.approx(1)
    assert wilson(490, 500) == pytest.approx((0.9637, 0.9890), abs=1e-3)
    rng = random.Random(0)
    covered = 0
    for _ in range(1000):
        share = rng.uniform(0.5, 0.99)
        low, high = wilson(sum(rng.random() < share for _ in range(200)), 200)
        covered += low <= share <= high
    assert 0.93 <= covered / 1000 <= 0.97


# ---------------------------------------------------------------- the board

def test_the_front_by_its_definition():
    """In each block and way for itself, among rules at most 2 points below one token at a time."""
    rng = random.Random(1)
    for _ in range(50):
        names = ["maskgit:1", *"abcdef"][rng.randint(0, 1):rng.randint(2, 7)]
        rows = [dict(rule=name, block=block, way=way, right=rng.randint(94, 99) / 100,
                     passes=rng.randint(0, 4))
                for block in board.BLOCKS for way in board.WAYS for name in names]
        board.mark_front(rows)
        for row in rows:
            others = [(o["rule"], o["right"], o["passes"]) for o in rows
                      if (o["block"], o["way"]) == (row["block"], row["way"])]
            least = min([right - 0.02 for name, right, _ in others if name == "maskgit:1"] or [0])
            beaten = any(right >= max(least, row["right"]) and passes <= row["passes"]
                         and (right, passes) != (row["right"], row["passes"])
                         for _, right, passes in others)
            assert row["front"] == (row["right"] >= least and not beaten)


def test_one_label_for_marks_on_each_other():
    def row(name, right, passes, yours=False):
        return dict(rule=name, right=right, passes=passes, yours=yours, front=False)
    rows = [row("a", 0.99, 5), row("b", 0.985, 5.1), row("mine", 0.99, 5, True),
            row("far", 0.99, 9), row("low", 0.5, 5)]
    assert board.labels(rows) == {
        "a": "", "b": "", "mine": "mine and 2 more", "far": "far", "low": "low"}


OWN = ("confident:0.9", "maskgit:12", "random_order:24")
N = 8  # scenes


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A board of a few rules and two of a reader's: its folder, its words, its rows."""
    folder = tmp_path_factory.mktemp("board")
    (folder / "mine.py").write_text("rule = lambda step: step.confidence > 0.9\n")
    (folder / "twice.py").write_text("def rule(step):\n    step.look(step.tokens)\n"
                                     "    return step.confidence > 0.9\n")
    words = ["rules", "--scenes", N, "--device", "cpu", "--json", folder / "f.json",
             "--csv", folder / "new" / "f.csv", "--rule", folder / "mine.py", "--rule",
             folder / "twice.py", "--picture", folder / "p" / "front.png"]
    with (pytest.MonkeyPatch.context() as patch,
          contextlib.redirect_stdout(io.StringIO()) as stream):
        patch.setattr(board, "RULES", OWN)
        main(list(map(str, words)))
    return folder, stream.getvalue(), json.loads((folder / "f.json").read_text())


def by_key(rows):
    return {(row["rule"], row["block"], row["way"]): row for row in rows if "error" not in row}


def test_the_board_has_each_rule_in_each_block_and_way(measured):
    folder, said, rows = measured
    found = by_key(rows)
    assert len(found) == len(rows)
    assert set(found) == {*itertools.product([*OWN, "mine", "twice"], board.BLOCKS, board.WAYS),
                          ("AR phase, greedy, KV cache", "trained", "greedy")}
    assert {path.name for path in (folder / "p").iterdir()} == {"front.png", "front_weak.png"}
    assert said.count("\n| `mine` | ") == 3 and "★" in said
    assert f"{N} held-out scenes, look prefilled" in said
    for block, way in itertools.product(board.BLOCKS, board.WAYS):
        row, two = found["confident:0.9", block, way], found["twice", block, way]
        mine = {**row, **found["mine", block, way]}
        for key in ("ms_batch_1", "ms_batch_64"):
            mine[key] = row.get(key)
        assert mine == {**dict.fromkeys(("ms_batch_1", "ms_batch_64")), **row, "rule": "mine",
                        "yours": True}, "built-in rules have no privilege"
        assert (row["won"], row["lost"], row["more_passes"]) == (0, 0, 0)
        assert two["iterations"] == row["iterations"] == row["passes"]
        assert two["passes"] == 2 * row["passes"], "its own looks count"
        assert found["maskgit:12", block, way]["passes"] == 4
        assert found["random_order:24", block, way]["passes"] == 2
        assert ("tokens_computed" in row) == ((block, way) == ("trained", "greedy"))


def test_the_csv_holds_what_the_json_does(measured):
    folder, _, rows = measured
    with open(folder / "new" / "f.csv", newline="") as file:
        written = list(csv.DictReader(file))
    for row, cells in zip(rows, written, strict=True):
        for key, cell in cells.items():
            value = row.get(key, "")
            assert (json.loads(cell) if isinstance(value, dict) else cell) == (
                value if isinstance(value, dict) else str(value)), key


@pytest.mark.parametrize("block, way", [*itertools.product(board.BLOCKS, board.WAYS)])
def test_what_the_board_says_of_a_rule_computed_again(measured, block, way):
    """Right, mistakes, passes, and against confident:0.9: won, lost, more passes."""
    model, tokenizer, _ = load(SHIPPED_WEAK if block == "weak" else SHIPPED)
    scenes, found = Scenes(model.config, tokenizer, N, CPU), {}
    images, prompts, windows = scenes[:N]
    for name in OWN:
        look = prefilled(model, images, prompts)
        if block == "exact":
            look = scenes.exact()(torch.arange(N))
        torch.manual_seed(0)
        out = decode(look, windows, model.config, resolve(name), float(way == "sampled"))
        wrong = [toy.mistake(tokenizer.decode(out.response(b)), scene, scenes.board,
                             out.ends[b] < windows.shape[1])
                 for b, scene in enumerate(scenes.split.scenes)]
        found[name] = wrong, out.passes.double()
    base, base_passes = found["confident:0.9"]
    for name, (wrong, passes) in found.items():
        row = by_key(measured[2])[name, block, way]
        assert row["right"] == wrong.count(None) / N
        counts = Counter(filter(None, wrong))
        assert row["mistakes"] == {kind: n / N for kind, n in counts.items()}
        assert row["passes"] == pytest.approx(passes.mean().item())
        assert row["won"] == sum(a is None is not b for a, b in zip(wrong, base))
        assert row["lost"] == sum(b is None is not a for a, b in zip(wrong, base))
        more = passes - base_passes
        half = 1.96 * more.std().item() / N ** 0.5
        assert [row[f"more_passes{end}"] for end in ("", "_low", "_high")] == pytest.approx(
            [more.mean().item(), more.mean().item() - half, more.mean().item() + half])


def test_on_the_exact_posterior_only_what_depends_breaks():
    """Two places that one choice of two settles have ln 2 nats each, at most: a bound above that
    commits them in one pass, and at temperature 1 each as it comes."""
    model, tokenizer, _ = load(SHIPPED)
    scenes = Scenes(model.config, tokenizer, 30, CPU)
    for name, temperature, right in (("confident:0.9", 0, True), ("confident:0.9", 1, True),
                                     ("eb_sampler:0.5", 1, True), ("eb_sampler:0.8", 1, False)):
        way = exact_way(scenes, resolve(name), float(temperature))
        found = board.grade_rule(way, scenes).figures
        assert (found["right"] == 1) == right, name
    assert found["mistakes"]["phrase mangled"] > 0.5


def test_the_board_of_other_rules_than_its_own(measured, tmp_path, capsys):
    """They are compared with confident:0.9, which is not shown."""
    words = ["rules", "--scenes", N, "--device", "cpu", "--only", "maskgit:12", "other",
             "--picture", tmp_path / "x.png", "--json", tmp_path / "f.json"]
    main(list(map(str, words)))
    rows, said = json.loads((tmp_path / "f.json").read_text()), capsys.readouterr().out
    found, whole = by_key(rows), by_key(measured[2])
    assert {rule for rule, *_ in found} == {"maskgit:12", "AR phase, greedy, KV cache"}
    for key, row in found.items():
        for name in ("right", "passes", *(["won", "lost"] if key[0] == "maskgit:12" else [])):
            assert row[name] == whole[key][name]
    assert [row["rule"] for row in rows if "error" in row] == ["other"] and "unknown" in said
    assert "none.py does not exist" in refused(capsys, "rules", "--only", "none.py")


def test_the_board_of_another_toy_set(tmp_path, capsys, monkeypatch):
    """Weights of captions in any order: graded by what they leave open."""
    monkeypatch.setattr(board, "RULES", ("confident:0.9",))
    shipped, tokenizer, origin = load(SHIPPED)
    torch.manual_seed(0)
    model = Dimple(replace(shipped.config, width=32, vit_width=32, layers=1))
    paths = {"--checkpoint": "diffusion", "--weak-checkpoint": "diffusion", "--ar-checkpoint": "ar"}
    words = ["rules", "--scenes", 4, "--device", "cpu", "--json", tmp_path / "f.json",
             "--picture", tmp_path / "x.png"]
    for flag, phase in paths.items():
        words += [flag, tmp_path / f"{flag}.pt"]
        save(words[-1], model, tokenizer, {**origin, "phase": phase, "order": "free"})
    main(list(map(str, words)))
    found = by_key(json.loads((tmp_path / "f.json").read_text()))
    assert found["confident:0.9", "exact", "sampled"]["right"] == 1
    assert found["confident:0.9", "trained", "greedy"]["right"] == 0
    assert "always suffice" not in capsys.readouterr().out, "in free order it is not known"


BAD = {
    "empty": ("", "defines no function `rule`"),
    "syntax": ("def rule(step", "fails with SyntaxError"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "raises": ("def rule(step):\n    return 1 / 0", "line 2, `return 1 / 0`: ZeroDivisionError"),
    "leaves": ("import sys\ndef rule(step):\n    sys.exit()", "line 3, `sys.exit()`: SystemExit"),
    "answers": ("def rule(step): return step.confidence", "it must return positions to commit"),
    "ids": ("def rule(step): return step.tokens + 9999", "its window holds ids"),
}


def test_bad_files_are_rows_that_say_what_is_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(board, "RULES", ("confident:0.9",))
    (tmp_path / "good.py").write_text("rule = lambda step: step.confidence > 0.9\n")
    words = ["--rule", tmp_path / "good.py:3", "--rule", tmp_path / "good.py"]  # the first fails
    for name, (code, _) in BAD.items():
        (tmp_path / f"{name}.py").write_text(code)
        words += ["--rule", tmp_path / f"{name}.py"]
    words += ["--picture", tmp_path / "x.png", "--json", tmp_path / "f.json", "--device", "cpu"]
    main(["rules", "--scenes", "2", *map(str, words)])
    figures, out = json.loads((tmp_path / "f.json").read_text()), capsys.readouterr().out
    assert {key[0] for key in by_key(figures)} == {
        "good", "confident:0.9", "AR phase, greedy, KV cache"}
    assert sum("error" in row for row in figures) == 1 + len(BAD)
    assert "keeps them" not in out
    parts = [[line for line in part.splitlines() if line.startswith("| `")]
             for part in out.split(":\n\n| rule")[1:]]
    assert [len(rows) for rows in parts] == [len(BAD) + n for n in (3, 4, 3)]
    for rows in parts:
        assert len({row.count("|") for row in rows}) == 1
        for name, (_, message) in {**BAD, "good.py:3": ("", "`rule` takes no number")}.items():
            found = [row for row in rows if f"/{name}" in row and "★" in row]
            assert len(found) == 1 and message in found[0], name
    assert "empty.py" in refused(capsys, "rules", "--rule", tmp_path / "empty.py",
                                 "--rule", tmp_path / "exits.py"), "nothing of yours is left"


def test_the_board_through_a_look_of_ones_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(board, "RULES", ("confident:0.9",))
    (tmp_path / "mine.py").write_text("from mini_dimple import full as look\n")
    figures, written = [], tmp_path / "f.json"
    for look in ("full", str(tmp_path / "mine.py")):
        main(["rules", "--scenes", "3", "--look", look, "--json", str(written),
                    "--picture", str(tmp_path / "x.png"), "--device", "cpu"])
        rows = json.loads(written.read_text())
        figures.append({key: (row["right"], row["passes"]) for key, row in by_key(rows).items()})
    assert figures[0] == figures[1] and f"look {look};" in capsys.readouterr().out
    assert "--look fast: unknown" in refused(capsys, "rules", "--look", "fast")


# ---------------------------------------------------------------- rows that are kept

@pytest.fixture
def keeping(tmp_path, monkeypatch, capsys):
    """-> keeping(*words): of a board of two rules its rows, its words, and which were measured;
    what --write keeps goes elsewhere than into the repository."""
    monkeypatch.setattr(board, "RULES", ("confident:0.9", "maskgit:12"))
    (tmp_path / "rules").symlink_to(ROOT / "rules")
    (tmp_path / "results.md").write_text("<!-- rules -->\nold\n<!-- end of rules -->\n")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.md")
    for name, path in (("ROOT", ""), ("FIGURES", ""), ("KEPT", "board.json")):
        monkeypatch.setattr(board, name, tmp_path / path)
    done, real = [], board.Measuring.rule
    monkeypatch.setattr(board.Measuring, "rule",
                        lambda self, rule: done.append(rule.__name__) or real(self, rule))

    def run(*words):
        done.clear()
        main(["rules", "--scenes", "3", "--device", "cpu", "--json", str(tmp_path / "f.json"),
              "--picture", str(tmp_path / "x.png"), *map(str, words)])
        rows = json.loads((tmp_path / "f.json").read_text())
        return by_key(rows), capsys.readouterr().out, list(done)
    return run


def times(said, rule):
    """The two times of a rule in the table of the trained weights."""
    line, = [line for line in said.split("On the trained weights")[1].split("On weaker")[0]
             .splitlines() if line.startswith(f"| `{rule}` ")]
    return [cell.strip() for cell in line.split("|")[-3:-1]]


def test_a_board_that_is_kept_is_not_measured_again(keeping, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("rule = lambda step: step.masked")
    rows, said, done = keeping("--write")
    assert done == ["confident:0.9", "maskgit:12"] and "keeps them" not in said
    assert all(times(said, "maskgit:12")) and (tmp_path / "rules_weak.png").exists()
    text = (tmp_path / "results.md").read_text()
    assert "| `maskgit:12` |" in text and "old" not in text
    again, said, done = keeping()
    assert again == rows and not done
    assert "2 rules as board.json keeps them, of earlier runs" in said
    assert all(times(said, "maskgit:12") + times(said, "confident:0.9"))
    kept = json.loads((tmp_path / "board.json").read_text())
    (tmp_path / "board.json").write_text(json.dumps(kept | {"where": "elsewhere"}))
    again, said, done = keeping()
    untimed = lambda row: {name: row[name] for name in row if not name.startswith("ms_")}
    assert [*map(untimed, again.values())] == [*map(untimed, rows.values())] and not done
    assert "2 rules as board.json keeps them, without their times, of another machine" in said
    assert times(said, "AR phase, greedy, KV cache") == ["", ""]
    assert times(said, "maskgit:12") == times(said, "confident:0.9") == ["", ""]
    again, said, done = keeping("--rule", tmp_path / "mine.py", "--rule", "maskgit:12")
    assert done == ["mine", "maskgit:12"], "a reader's are measured anew"
    assert all(times(said, "mine") + times(said, "maskgit:12"))
    assert not any(times(said, "confident:0.9"))
    assert again["mine", "exact", "greedy"]["lost"] == 3, "beside what is kept of confident:0.9"
    for key, row in rows.items():
        same = again[key]["rule"] != "maskgit:12"
        assert all(row[name] == again[key][name] for name in untimed(row)
                   if same and name != "front" or name in ("right", "passes", "won", "mistakes"))
    (tmp_path / "board.json").write_text(json.dumps(kept))
    before = (tmp_path / "board.json").read_bytes()
    assert keeping("--scenes", "2")[2] == ["confident:0.9", "maskgit:12"]
    for words in (["--only", "maskgit:24"], ["--rule", "maskgit:24"]):
        assert keeping("--write", *words)[2] == ["maskgit:24"]
    assert (tmp_path / "board.json").read_bytes() == before, "no other board is kept"
    monkeypatch.setattr(board, "RULES", ("confident:0.9", "maskgit:24"))
    assert keeping("--write")[2] == ["maskgit:24"], "what is missing is added, the rest goes"
    assert set(json.loads((tmp_path / "board.json").read_text())["rows"]) == set(board.RULES)


def test_what_is_kept_goes_with_the_code_the_weights_and_the_scenes(tmp_path, monkeypatch):
    def setting(*words):
        args = lab.__main__.parse(["rules", *map(str, words)])[1]
        return board.setting(args, torch.device("cuda" if "cuda" in words else "cpu"))

    def kept(*words):
        return set(board.kept_rows(setting(*words))["rows"])
    both, weak = {"confident:0.9", "maskgit:12"}, tmp_path / "weak.pt"
    monkeypatch.setattr(board, "KEPT", tmp_path / "board.json")
    assert kept() == set()
    state = dict(setting=setting(), base={}, rows={name: [] for name in both},
                 stamps={name: board.stamp(name) for name in both})
    board.KEPT.write_text(json.dumps(state))
    assert kept() == kept("--rule", "klass") == both
    shutil.copy(SHIPPED_WEAK, weak)
    for words in (["--look", "full"], ["--length", 48], ["--weak-checkpoint", weak],
                  ["--device", "cuda"]):
        assert setting(*words) is None and kept(*words) == set(), words
    assert kept("--scenes", 5) == set()
    with monkeypatch.context() as patch:
        patch.setattr(board, "SHIPPED_WEAK", weak)
        assert kept("--weak-checkpoint", weak) == both
        shutil.copy(SHIPPED, weak)
        assert kept("--weak-checkpoint", weak) == set(), "other weights"
    real = board.stamp
    for changed, left in (("maskgit:12", {"confident:0.9"}), ("confident:0.9", set())):
        with monkeypatch.context() as patch:
            patch.setattr(board, "stamp", lambda text: real(text) + "x" * (text == changed))
            assert kept() == left, "a rule's code; that of what all are compared with"
    with monkeypatch.context() as patch:
        patch.setattr(board, "CODE", board.CODE[1:])
        assert kept() == set(), "code of the board"
    for content in ("", "{", "{}"):
        board.KEPT.write_text(content)
        assert kept() == set()


# ---------------------------------------------------------------- speed, and mistakes

def test_decode_runs_to_its_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "SWEEP", ((9, 12),))
    monkeypatch.setattr(speed, "BATCH", 2)
    written = tmp_path / "f.json"
    main(["speed", "decode", "--repeats", "2", "--json", str(written), "--device", "cpu"])
    figures = json.loads((tmp_path / "f.json").read_text())
    assert 0 < figures["share_in_model"] < 1
    assert len(figures["ways"]) == 8 and len(figures["prefill"]) == 1
    assert "greedy AR, KV cache" in capsys.readouterr().out


def test_checkpoints_that_do_not_fit(tmp_path, capsys):
    state = torch.load(SHIPPED, weights_only=True)
    for change, message in (({"trained_on": "pictures"}, "your own pictures"),
                            ({"phase": "ar"}, "'diffusion'"), ({"wording": "many"}, "wording"),
                            *(({name: other}, "not of one run, or of one toy set") for name, other
                              in (("trained_on", "small"), ("wording", "one"), ("order", "free")))):
        torch.save({**state, "origin": {**state["origin"], **change}}, tmp_path / "x.pt")
        assert message in refused(capsys, "rules", "--checkpoint", tmp_path / "x.pt")
    assert "--ar-checkpoint" in refused(capsys, "speed", "decode", "--ar-checkpoint", SHIPPED)
    assert "needed is one that ended with 'diffusion'" in refused(
        capsys, "rules", "--weak-checkpoint", SHIPPED_AR)


def test_mistakes_are_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "must end in .png" in refused(capsys, "rules", "--picture", tmp_path / "x.jpg")
    assert "file" in refused(capsys, "speed", "decode", "--json", tmp_path / "file" / "x.json")
    assert "unknown" in refused(capsys, "rules", "--rule", "other")
    assert "--scenes" in refused(capsys, "rules", "--scenes", 0)
    assert "none.pt" in refused(capsys, "speed", "decode", "--checkpoint", "none.pt")
    assert "COMMAND" in refused(capsys) and "decode|training" in refused(capsys, "speed")
    assert "at most 10" in refused(capsys, "claims", "recipe", "--seeds", 11)
    assert "1 or more" in refused(capsys, "claims", "--seeds", 0)
    assert "1 or more" in refused(capsys, "claims", "--jobs", 0)
    assert "'other' is none; choose from recipe" in refused(capsys, "claims", "other")
    assert "choose one" in refused(capsys, "claims", "--quick", "--write")
    out = tmp_path / "file"
    assert str(out) in refused(capsys, "claims", "loss", "--quick", "--out", out)


# ---------------------------------------------------------------- claims

@pytest.fixture
def tiny_lab(monkeypatch):
    """By default 2 + 8 steps; -> lab(out, **options)."""
    monkeypatch.setitem(train.PRESETS["tiny"], "ar_steps", 2)
    monkeypatch.setitem(train.PRESETS["tiny"], "diffusion_steps", 8)

    def make(out, **options):
        args = dict(out=out, quick=False, seeds=1, scenes=4, jobs=1) | options
        return Lab(argparse.Namespace(**args), CPU)
    return make


def weights(path):
    return torch.load(path, weights_only=True)["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe, words", [
    (Recipe(2, 8), []), (Recipe(0, 6), []), (Recipe(6, 0), []),
    (Recipe(2, 4, "three"), ["--wording", "three"]),
    (Recipe(2, 4, variant=("flat", "unpadded")), ["--variant", "flat", "unpadded"]),
    (Recipe(2, 4, variant=("complementary", "prefix-mask")),
     ["--variant", "complementary", "prefix-mask"])])
def test_the_labs_models_are_those_of_train_py(tmp_path, tiny_lab, recipe, words):
    """Sharing the AR phase and keeping weights on the way changes nothing, bit for bit."""
    recipe, lab = recipe._replace(examples=200), tiny_lab(tmp_path / "lab")
    lab.seeds = lambda wanted: [1]
    lab.default = Recipe(2, 8, examples=200)  # its weights are kept on the way, too
    plan = {"it": Asked(recipe)}
    for made, seed in lab.missing(plan):
        lab.train(made, seed)
    assert not lab.missing(plan)
    steps = ["--ar-steps", recipe.ar_steps, "--diffusion-steps", recipe.diffusion_steps]
    command = [sys.executable, ROOT / "train.py", "--out", tmp_path / "o", "--device", "cpu",
               "--examples", 200, "--evaluate", 0, "--seed", 1, *steps, *words]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    mine, theirs = weights(lab.path(recipe, 1)), weights(tmp_path / "o" / "mini_dimple.pt")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert all(lab.path(recipe, 1, step).exists() for step in lab.kept(recipe))
    model, _, origin = load(lab.path(recipe, 1))
    assert origin["variant"] == list(recipe.variant) and origin["steps"] == recipe.steps
    assert (origin["seed"], origin["wording"]) == (1, recipe.wording)
    if recipe.diffusion_steps:
        result = json.loads((tmp_path / "o" / "result.json").read_text())
        assert lab.above_floor(recipe, 1) == [result["nats_above_floor"]["all"]]


def test_a_recipe_as_words_of_train_py():
    recipe = Recipe(2, 4, "one", 500, ("complementary", "unpadded"))
    words = ["--wording", "one", "--examples", 500, "--variant", "complementary", "unpadded"]
    assert recipe.words() == words and Recipe(2, 4).words() == []
    asked, _ = train.settings_from(train.parse(list(map(str, words)))[1])
    assert recipe.options().items() <= (asked | {"variant": tuple(asked["variant"])}).items()
    assert recipe.ar_phase() == Recipe(2, 0, "one", 500), "the same captions, the same examples"


def test_recipes_share_the_ar_phases_that_are_alike(tmp_path, tiny_lab):
    lab = tiny_lab(tmp_path, seeds=2)
    kinds = [Recipe(2, 4), Recipe(2, 4, variant=("flat",)), Recipe(2, 4, "one"),
             Recipe(2, 4, examples=9), Recipe(0, 6)]
    missing = lab.missing({str(kind): Asked(kind, 5) for kind in kinds})
    assert set(missing) == set(itertools.product(
        [*kinds, Recipe(2, 0), Recipe(2, 0, "one"), Recipe(2, 0, examples=9)], range(2)))
    assert len({lab.folder(*one) for one in missing}) == len(missing)
    for kind in kinds[:4]:
        ar_phase = lab.folder(kind.ar_phase(), 1) / "ar_phase.pt"
        assert ar_phase in lab.words(kind, 1)


def test_jobs_train_ar_phases_first_and_as_many_at_once(tmp_path, tiny_lab):
    lab, both, events, done = tiny_lab(tmp_path, seeds=2, jobs=2), threading.Barrier(2), [], []

    def training(recipe, seed):
        events.append(("start", recipe))
        both.wait(10)  # until another is under way, too
        events.append(("end", recipe))
    lab.train = training
    missing = lab.missing({name: Asked(made) for name, made in (
        ("alone", Recipe(0, 6)), ("a", Recipe(2, 4)), ("b", Recipe(2, 4, "one")))})
    lab.train_all(missing, lambda *one: done.append(one))
    assert sorted(map(str, done)) == sorted(map(str, missing)) and len(missing) == 10
    phases = [made.diffusion_steps > 0 for _, made in events]
    assert phases == sorted(phases), "no other before the last AR phase ends"

    def failing(recipe, seed):
        raise ValueError("train.py fails")
    lab.train = failing
    with pytest.raises(ValueError, match="train.py fails"):
        lab.train_all(missing, lambda *one: None)


def test_all_claims_take_at_most_60_models(tmp_path):
    args = lab.__main__.parse(["claims", "--out", str(tmp_path)])[1]
    made = Lab(args, CPU)
    models = {one for plan, *_ in CLAIMS.values() for one in made.missing(plan(made))}
    assert sum(recipe.diffusion_steps > 0 for recipe, _ in models) <= 60


def test_a_change_of_code_trains_anew(tmp_path, monkeypatch, tiny_lab):
    lab = tiny_lab(tmp_path)
    before = lab.folder(lab.default, 0)
    assert tiny_lab(tmp_path).folder(lab.default, 0) == before != lab.folder(lab.default, 1)
    monkeypatch.setattr(models, "ROOT", tmp_path)
    digests = []
    for text in ("def f(x):\n    return 1", 'def f(x):\n    """Words."""\n    return 1  # why',
                 "def f(x):\n    return 2", "def f(x):\n    return '2'"):
        (tmp_path / "code.py").write_text(text)
        digests.append(models.digest("code.py"))
    assert digests[0] != digests[2] != digests[3] != digests[0], "code counts"
    (tmp_path / "code.py").write_text("def f(x):\n    return 1  # why")
    assert models.digest("*.py") == digests[0], "comments do not"


def test_training_that_fails_is_told_with_its_reason(tmp_path, tiny_lab, monkeypatch):
    """And is done by the next call, anew, or from where it was. With a train.py that needs no
    time."""
    lab, recipe = tiny_lab(tmp_path / "o", jobs=2), Recipe(2, 0, examples=100)
    monkeypatch.setattr(models, "ROOT", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)

    def train(code):
        (tmp_path / "train.py").write_text(f"""import os, pathlib, signal, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
print(sys.argv[-1], os.environ["OMP_NUM_THREADS"])
{code}""")
        lab.train(recipe, 0)
    folder = lab.folder(recipe, 0)
    with pytest.raises(ValueError, match="examples_100-seed_0-cpu-.*: it went wrong$"):
        train("sys.exit('it went wrong')")
    with pytest.raises(ValueError, match="ended by signal 9; the same command goes on"):
        train("os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(KeyboardInterrupt):
        train("(out / 'last.pt').touch(); sys.exit(130)")
    assert lab.missing({"it": Asked(recipe)}) == [(recipe, 0)]
    train("(out / 'result.json').touch()")
    assert not lab.missing({"it": Asked(recipe)}) and not (folder / "last.pt").exists()
    said = [line for line in (folder / "train.txt").read_text().splitlines() if "--" in line]
    assert said == ["--overwrite 4"] * 3 + ["--resume 4"], "two jobs share eight cores"


@pytest.mark.slow
def test_claims_go_on_after_an_interruption(tmp_path):
    """What was trained and measured before is not done again, and the figures are those of a run
    that was not interrupted."""
    words = [sys.executable, "-m", "lab", "claims", "priors", "--quick", "--device", "cpu", "--out"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([*words, whole], check=True, capture_output=True, cwd=ROOT)
    process = subprocess.Popen([*words, broken], stderr=subprocess.PIPE, cwd=ROOT, text=True,
                               stdout=subprocess.DEVNULL, start_new_session=True)
    models = broken / "quick" / "models"
    while not any(models.glob("ar_steps_4-diffusion_steps_8-seed_0*/log.csv")):
        assert process.poll() is None
        time.sleep(0.1)  # until the second model
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to the lab and to its train.py
    error = process.communicate()[1]
    assert process.returncode == 130, error
    assert "goes on with what is trained" in error and "Traceback" not in error
    first = list(models.glob("*/ar_phase.pt"))
    trained = first[0].stat().st_mtime_ns
    subprocess.run([*words, broken], check=True, capture_output=True, cwd=ROOT)
    assert len(first) == 1 and first[0].stat().st_mtime_ns == trained, "nothing is trained again"
    for name in ("priors.csv", "priors.md"):
        mine, theirs = ((out / "quick" / name).read_text() for out in (broken, whole))
        assert mine.replace(str(broken), str(whole)) == theirs
    measured = (broken / "quick" / "priors.md").stat().st_mtime_ns
    done = subprocess.run([*words, broken], check=True, capture_output=True, cwd=ROOT)
    assert (broken / "quick" / "priors.md").stat().st_mtime_ns == measured, "nor measured again"
    assert b"| given | diffusion: right" in done.stdout


@pytest.mark.slow
def test_claims_run_to_their_tables(tmp_path):
    """Of several, the models of all are trained first, two at once. (.ci/run runs all claims.)"""
    words = ["claims", "confident", "priors", "--quick", "--jobs", "2", "--out", tmp_path]
    done = subprocess.run([sys.executable, "-m", "lab", *map(str, words), "--device", "cpu"],
                          cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    for name in ("confident", "priors"):
        text = (tmp_path / "quick" / f"{name}.md").read_text()
        assert text.startswith(f"**{name}**: ") and text.partition("<!--")[0] in done.stdout
        rows = (tmp_path / "quick" / f"{name}.csv").read_text().splitlines()
        assert len(rows) > 2 and "| --- |" in text
    pictures = {path.stem for path in (tmp_path / "quick").glob("*.png")}
    assert pictures == {"confident", "confident_length"}


def test_a_prefix_that_never_saw_the_window_is_the_prefix_masks():
    """`unseen` on any weights is prefilling on the same weights read with a prefix mask."""
    model, images, prompt, window = random_case(0, 3, 9)
    masked = PrefixMasked(model.config).double().eval()
    masked.load_state_dict(model.state_dict())
    for tokens in (window, window.masked_fill(window > 9, 1)):
        mine, _ = unseen(model, images, prompt)(tokens)
        torch.testing.assert_close(mine, prefilled(masked, images, prompt)(tokens)[0])


def test_a_measurement_goes_into_its_place_in_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.md")
    (tmp_path / "results.md").write_text(
        "# R\n<!-- a -->\nold\n<!-- end of a -->\nwords\n<!-- ab -->\nkept\n<!-- end of ab -->\n")
    results.write_part("a", f"{results.measured('python -m lab rules', CPU)}\n\n| new |")
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# R\n<!-- a -->\n\n`python -m lab rules`: 20")
    assert "| new |" in text and "old" not in text
    assert text.endswith("<!-- end of a -->\nwords\n<!-- ab -->\nkept\n<!-- end of ab -->\n")
    assert f"{torch.get_num_threads()} threads" in text and torch.__version__ in text
    with pytest.raises(ValueError, match="results.md: expected one <!-- b -->"):
        results.write_part("b", "x")


def test_intervals_cover_what_they_should():
    """Shares of scenes under models that differ by seed: the interval holds the true mean in at
    least 95 of 100 cases."""
    rng = random.Random(0)
    for seeds, spread, hard in ((1, 0.0, 0.0), (3, 0.0, 0.0), (3, 0.05, 0.0), (3, 0.0, 0.1),
                                (3, 0.0, 1.0)):
        covered = 0
        for _ in range(400):
            of_seed = [rng.gauss(0, spread) for _ in range(seeds)]
            # shared by the seeds: all may fail on the same scenes
            of_scene = [rng.choice((-1, 1)) * 0.1 * hard for _ in range(200)]
            hits = [[rng.random() < 0.9 + a + b for b in of_scene] for a in of_seed]
            _, low, high = share_interval(hits)
            covered += low <= 0.9 <= high
        assert covered / 400 >= 0.93
    certain = pytest.approx((1, wilson(50, 50)[0], 1))
    assert share_interval([[True] * 50] * 3) == certain, "all right is no certainty"
    assert mean_interval([[1.0, 2.0, 3.0]] * 2)[0] == 2
    low, high = gap_interval([[1, 0, 1, 1]] * 3, [[1, 0, 1, 0]] * 3)[1:]
    assert low < 0.25 < high
    assert gap_interval([[0] * 9] * 2 + [[1] * 9], [[1] * 9] * 3)[1] == -1, "no share is below 0"
    gap, low, high = gap_interval([[1, 0] * 50] * 3, [[1, 0] * 50] * 3)
    assert gap == 0 and low == -high
    assert 0.01 < high < 0.03, "no difference seen is no proof of none"


def test_priors_give_what_they_say_and_are_judged_by_it():
    model, tokenizer = load(SHIPPED)[:2]
    scenes, config = Scenes(model.config, tokenizer, 30, CPU), model.config
    firsts = {"a", *toy.PREPOSITIONS}  # words of a phrase
    for ids, text, scene in zip(scenes.responses, scenes.split.texts, scenes.split.scenes):
        priors = make_priors(ids, scene, config, tokenizer, scenes.board, random.Random(0))
        followed = lambda tokens, prior: follow(tokens, prior, tokenizer, scenes.board, config)
        fewer, lied = priors.pop("length of one object fewer", None), priors.pop(
            "the last object's colour, wrong")
        given = {}
        for name, prior in priors.items():
            here = prior.window != config.mask_id
            assert torch.equal(prior.window[here], ids[here])
            assert followed(ids, prior) == (True, True), name
            given[name] = tokenizer.decode(ids[here].tolist()).split()
        opening, thing, n = text.split()[:3], scene[-1], len(scene)
        assert given.pop("nothing") == given.pop("length") == []
        assert (priors["length"].window == config.eos_id).sum() == (ids == config.eos_id).sum()
        assert given.pop("opening") == opening
        assert given.pop("opening and the first object's wording") == text.split()[:4]
        last = given.pop("the last object's wording")
        assert given.pop("every object's wording")[-1:] == last and set(last) <= firsts
        assert (priors["every object's wording"].window != config.mask_id).sum() == n
        assert given.pop("the last object's colour") == [thing.colour]
        assert " ".join(given.pop("all but the last object")).startswith(
            " ".join(text.split(" and ")[:-1] or opening)) and not given
        blank = ids[priors["all but the last object"].window == config.mask_id]
        assert tokenizer.decode(blank.tolist()).strip() == re.split(
            " and ", text.split(" ", 3)[3])[-1]
        lie, = lied.window[lied.window != config.mask_id].tolist()
        assert tokenizer.decode([lie]).strip() in set(toy.COLOURS) - {thing.colour}
        told = torch.where(lied.window == config.mask_id, ids, lied.window)
        assert followed(ids, lied) == (False, False) and followed(told, lied) == (True, True)
        assert (fewer is not None) == (n > 1)
        if fewer:
            words = tokenizer.encode(
                toy.caption(scene[1:], scenes.board, toy.OPENINGS[1], "in", [0] * n))
            some = torch.tensor(words + [config.eos_id] * (len(ids) - len(words)))
            assert followed(some, fewer) == (True, True), "any of its objects left out"
            assert followed(ids, fewer) == (False, False)
        inside = torch.cat([ids[:9], torch.tensor([config.eos_id]), ids[9:-1]])
        assert followed(inside, priors["nothing"]) == (True, False), "an EOS inside"


def test_rank_correlation_and_sign_test_by_their_definitions():
    rng = random.Random(0)
    for n in range(2, 9):
        a, b = ([rng.randint(0, 4) for _ in range(n)] for _ in "ab")
        pairs = n * (n - 1) / 2
        apart = [(a[i] - a[j]) * (b[i] - b[j]) for i, j in itertools.combinations(range(n), 2)]
        ties = [sum(k * (k - 1) / 2 for k in Counter(x).values()) for x in (a, b)]
        if pairs not in ties:
            wanted = sum(np.sign(apart)) / math.sqrt(math.prod(pairs - tied for tied in ties))
            assert tau_b(a, b) == pytest.approx(wanted)
        gap = abs(sum(np.sign(np.subtract(a, b))))  # as large by chance, of all signs
        flips = list(itertools.product((-1, 1), repeat=sum(x != y for x, y in zip(a, b))))
        assert sign_test(a, b) == pytest.approx(
            sum(abs(sum(signs)) >= gap for signs in flips) / len(flips))
    assert tau_b([1, 2, 3], [4, 5, 6]) == 1 == -tau_b([1, 2, 3], [6, 5, 4])
    assert math.isnan(tau_b([1, 1], [1, 2]))


def test_a_slope_is_of_the_line_of_least_squares():
    points = [(1, 3.0, 0, 0), (4, 9.0, 0, 0), (5, 10.0, 0, 0)]
    assert slope(points) == pytest.approx(np.polyfit([1, 4, 5], [3, 9, 10], 1)[0])
    assert math.isnan(slope(points[:1])), "one length has none"


def test_nats_by_seed():
    assert in_nats([0.01, 0.03]) == "0.0200 (0.0100 to 0.0300)"
    gap = statistics.stdev([0.01, 0.02]) * 12.706 / math.sqrt(2)  # Student's t
    assert nats_gap([0.02, 0.05], [0.01, 0.03]) == (
        f"+0.0150 ({0.015 - gap:+.4f} to {0.015 + gap:+.4f})")
    assert nats_gap([0.02], [0.01]) == "", "one seed says nothing of the others"


@pytest.mark.slow
def test_training_runs_to_its_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(train.PRESETS["tiny"], "batch_size", 8)
    written = tmp_path / "f.json"
    main(["speed", "training", "--repeats", "1", "--json", str(written), "--device", "cpu"])
    kinds = *speed.KINDS, "optimizers", "batch"
    for row in json.loads(written.read_text())["phases"]:
        assert 0 < row["share_of_matrix_rate"]
        assert sum(row[f"share_{kind}"] for kind in kinds) == pytest.approx(1, abs=1e-3)
    assert "Where a step's time goes" in capsys.readouterr().out
