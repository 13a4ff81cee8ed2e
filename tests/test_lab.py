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
import signal
import statistics
import subprocess
import sys
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
from lab import board, results, speed
from lab.checkpoint import ROOT, SHIPPED, SHIPPED_AR, SHIPPED_WEAK, load, save
from lab.claims import CLAIMS, Asked, follow, in_nats, make_priors, nats_gap, slope
from lab.evaluate import Floor, Scenes, exact_way, graded
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
    """In each block and way for itself, among rules at most 2 points below one token at a time, and
    not always wrong. Greedy by right and passes; sampled by the distance, too, of which 0.07 is as
    good as any less, and not without one."""
    rng, kinds = random.Random(1), set()
    for _ in range(100):
        names = ["maskgit:1", *"abcdef"][:rng.randint(2, 7)]
        best = rng.choice([1, 99])
        rows = [dict(rule=name, block=block, way=way, passes=rng.randint(0, 4),
                     right=rng.randint(max(best - 5, 0), best) / 100)
                for block in board.BLOCKS for way in board.WAYS for name in names]
        for row in rows:
            if row["way"] == "sampled" and row["block"] != "weak" and rng.random() < 0.9:
                row["distance"] = rng.randint(0, 12) / 100
        shown = [row for row in rows if row["rule"] != "maskgit:1" or rng.random() < 0.5]
        board.mark_front(shown, {(row["block"], row["way"]): row["right"] for row in rows
                                 if row["rule"] == "maskgit:1"}, 0.05)
        for row in shown:
            place = row["block"], row["way"]
            least, = (o["right"] - 0.02 for o in rows
                      if (o["rule"], o["block"], o["way"]) == ("maskgit:1", *place))
            good = [o for o in shown if (o["block"], o["way"]) == place
                    and o["right"] >= max(least, 0.005)
                    and ("distance" in o or row["way"] == "greedy")]
            far = lambda o: max(0.07, o["distance"]) if row["way"] == "sampled" else 0
            beaten = row in good and any(
                o["right"] >= row["right"] and o["passes"] <= row["passes"] and far(o) <= far(row)
                and (o["right"], o["passes"], far(o)) != (row["right"], row["passes"], far(row))
                for o in good)
            assert row["front"] == (row in good and not beaten)
            kinds.add((row["front"], row["way"], row["right"] == 0))
    assert len(kinds) == 6, "marked, beaten, and always wrong"


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
    mine, twice = (str(folder / f"{name}.py") for name in ("mine", "twice"))
    assert set(found) == {*itertools.product([*OWN, mine, twice], board.BLOCKS, board.WAYS),
                          *((board.AR, "trained", way) for way in board.WAYS)}
    table = said.split("\n\n")[1].splitlines()
    assert max(map(len, said.splitlines()[1:])) <= 120
    assert all("mine.py" in line or "twice.py" in line for line in table[2:]), "yours come first"
    for block, way in itertools.product(board.BLOCKS, board.WAYS):
        row, two = found["confident:0.9", block, way], found[twice, block, way]
        same = {key for key in row if key not in ("rule", "yours") and key[:3] != "ms_"}
        assert all(row[key] == found[mine, block, way][key] for key in same), "no privilege"
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
        _, found = board.grade_rule(way, scenes)
        assert (found["right"] == 1) == right, name
    assert found["mistakes"]["phrase mangled"] > 0.5


def test_the_board_of_other_rules_than_its_own(measured, tmp_path, capsys):
    """They are compared with confident:0.9, which is not shown."""
    words = ["rules", "--scenes", N, "--device", "cpu", "--only", "maskgit:12",
             "--picture", tmp_path / "x.png", "--json", tmp_path / "f.json"]
    main(list(map(str, words)))
    found, whole = by_key(json.loads((tmp_path / "f.json").read_text())), by_key(measured[2])
    assert {rule for rule, *_ in found} == {"maskgit:12", board.AR}
    for key, row in found.items():
        for name in ("right", "passes", *(["won", "lost"] if key[0] == "maskgit:12" else [])):
            assert row[name] == whole[key][name]
    capsys.readouterr()
    assert "none.py does not exist" in refused(capsys, "rules", "--only", "none.py")


def test_the_board_of_another_toy_set(tmp_path, monkeypatch):
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


def test_a_rule_that_fails_is_a_line_that_says_where(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(board, "RULES", ("confident:0.9",))
    (tmp_path / "raises.py").write_text("def rule(step):\n    return 1 / 0\n")
    words = ["--scenes", "2", "--device", "cpu", "--picture", tmp_path / "x.png", "--json",
             tmp_path / "f.json", "--rule", tmp_path / "raises.py"]
    main(["rules", *map(str, words)])
    rows, said = json.loads((tmp_path / "f.json").read_text()), capsys.readouterr().out
    error, = (row["error"] for row in rows if "error" in row)
    assert "line 2, `return 1 / 0`: ZeroDivisionError" in error and error in said
    assert ("confident:0.9", "weak", "sampled") in by_key(rows), "the others have their rows"
    (tmp_path / "empty.py").write_text("")
    assert "empty.py defines no function" in refused(capsys, "rules", "--rule",
                                                     tmp_path / "empty.py")


def test_an_error_in_code_that_a_reader_changed_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(board, "wilson", lambda hits, n: (1, 2, 3))
    with pytest.raises(ValueError, match="too many values"):
        main(["rules", "--scenes", "1", "--only", "confident:0.9", "--device", "cpu", "--picture",
              str(tmp_path / "x.png")])


def test_the_board_through_a_look_of_ones_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(board, "RULES", ("confident:0.9",))
    (tmp_path / "mine.py").write_text("from mini_dimple import full as look\n")
    figures, written = [], tmp_path / "f.json"
    for look in ("full", str(tmp_path / "mine.py")):
        main(["rules", "--scenes", "3", "--look", look, "--json", str(written),
                    "--picture", str(tmp_path / "x.png"), "--device", "cpu"])
        rows = json.loads(written.read_text())
        figures.append({key: (row["right"], row["passes"]) for key, row in by_key(rows).items()})
    assert figures[0] == figures[1] and f"look {look}" in capsys.readouterr().out
    assert "--look fast: unknown" in refused(capsys, "rules", "--look", "fast")


def test_a_board_that_is_kept_is_shown_as_it_is(tmp_path, monkeypatch, capsys):
    """What is named with --rule, and what --write writes, is measured anew."""
    monkeypatch.setattr(board, "RULES", ("confident:0.9", "maskgit:12"))
    (tmp_path / "results.md").write_text("<!-- rules -->\nold\n<!-- end of rules -->\n")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.md")
    monkeypatch.setattr(board, "FIGURES", tmp_path)
    monkeypatch.setattr(board, "KEPT", tmp_path / "board.json")
    monkeypatch.setattr(board, "draw", lambda path, *_: path.write_text(""))
    done, real = [], board.Measuring.rule

    def noted(self, rule, *rest, **options):
        done.append(rule.__name__)
        return real(self, rule, *rest, **options)
    monkeypatch.setattr(board.Measuring, "rule", noted)

    def run(*words):
        done.clear()
        main(["rules", "--scenes", "3", "--device", "cpu", "--json", str(tmp_path / "f.json"),
              "--picture", str(tmp_path / "p" / "x.png"), *words])
        return by_key(json.loads((tmp_path / "f.json").read_text())), capsys.readouterr().out
    rows, said = run("--write")
    assert done == ["confident:0.9", "maskgit:12"] and "keeps them" not in said
    text = (tmp_path / "results.md").read_text()
    assert text.count("| `maskgit:12` |") == 3 and "old" not in text
    again, said = run()
    kept = json.loads((tmp_path / "board.json").read_text())
    assert again == rows and not done and kept["commit"] in said and kept["where"] in said
    again, said = run("--rule", "maskgit:12")
    assert done == ["maskgit:12"] and again["maskgit:12", "exact", "greedy"]["won"] == rows[
        "maskgit:12", "exact", "greedy"]["won"], "beside what is kept of confident:0.9"
    run("--scenes", "2")
    assert done == ["confident:0.9", "maskgit:12"], "other scenes than those kept"


# ---------------------------------------------------------------- speed, and mistakes

def test_decode_runs_to_its_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "SWEEP", ((9, 12),))
    main(["speed", "decode", "--repeats", "2", "--batch", "1", "3", "--rule", "eb_sampler:0.5",
          "--look", "full", "--look", "changed:0.9", "--json", str(tmp_path / "f.json"),
          "--device", "cpu"])
    figures, out = json.loads((tmp_path / "f.json").read_text()), capsys.readouterr().out
    ar, full, changed = figures["ways"]
    assert full["passes"] == pytest.approx(changed["passes"], abs=0.4)
    assert full["positions, batch 1"] == pytest.approx(60 * full["passes"])  # 9 + 3 + 48
    assert changed["positions, batch 3"] < full["positions, batch 3"]
    assert ar["times AR, batch 3"] == 1 and len(figures["prefill"]) == 1
    for batch in ("1", "3"):
        shares = figures["shares"][batch]
        assert set(shares) == {"model", "look", "rule", "Step", "loop"}
        assert sum(shares.values()) == pytest.approx(1) and shares["model"] > 0.3
    assert "greedy AR, KV cache" in out and "The first pass computes 60 positions" in out


def test_checkpoints_that_do_not_fit(tmp_path, capsys):
    state = torch.load(SHIPPED, weights_only=True)
    for change, message in (({"trained_on": "pictures"}, "can be graded"),
                            ({"phase": "ar"}, "'diffusion'"), ({"wording": "many"}, "wording"),
                            *(({name: other}, "not of one run, or of one toy set") for name, other
                              in (("trained_on", "small"), ("wording", "one"), ("order", "free")))):
        torch.save({**state, "origin": {**state["origin"], **change}}, tmp_path / "x.pt")
        assert message in refused(capsys, "rules", "--checkpoint", tmp_path / "x.pt")
    assert "--ar-checkpoint" in refused(capsys, "speed", "decode", "--ar-checkpoint", SHIPPED)
    assert "the phase 'diffusion'" in refused(capsys, "rules", "--weak-checkpoint", SHIPPED_AR)


@pytest.mark.parametrize("words, named", [
    (["rules", "--picture", "x.jpg"], ".png"), (["rules", "--rule", "other"], "other"),
    (["rules", "--scenes", "0"], "--scenes"), (["speed"], "decode|training"),
    (["speed", "decode", "--checkpoint", "none.pt"], "none.pt"),
    (["claims", "recipe", "--seeds", "11"], "--seeds"), (["claims", "other"], "other"),
    (["claims", "--quick", "--write"], "--write")])
def test_mistakes_are_one_line(words, named, capsys):
    assert named in refused(capsys, *words)


# ---------------------------------------------------------------- claims

@pytest.fixture
def tiny_lab(monkeypatch):
    """-> lab(out, **options)."""
    def make(out, **options):
        args = dict(out=out, quick=False, seeds=2, scenes=4, jobs=2) | options
        return Lab(argparse.Namespace(**args), CPU)
    return make


def weights(path):
    return torch.load(path, weights_only=True)["weights"]


@pytest.mark.slow
def test_the_labs_models_are_those_of_train_py(tmp_path, tiny_lab, monkeypatch):
    """Sharing the AR phase, and two at once, changes nothing, bit for bit."""
    monkeypatch.setattr(Floor.__init__, "__defaults__", (500,))  # as in the lab's processes
    lab, done = tiny_lab(tmp_path / "lab"), []
    recipes = {
        Recipe(0, 4, examples=200): [], Recipe(2, 0, examples=200): [],
        Recipe(2, 4, "three", 200): ["--wording", "three"],
        Recipe(2, 4, "two", 200, ("flat", "unpadded")): ["--variant", "flat", "unpadded"],
        Recipe(2, 4, "two", 200, ("prefix-mask",)): ["--variant", "prefix-mask"]}
    plan = {recipe.name(): Asked(recipe, 1) for recipe in recipes}
    missing = lab.missing(plan)
    assert len(missing) == 6, "an AR phase is trained once for all that begin with it"
    lab.train(missing, lambda *one: done.append(one))
    assert sorted(map(str, done)) == sorted(map(str, missing)) and not lab.missing(plan)
    for recipe, words in recipes.items():
        out = tmp_path / recipe.name()
        train.main(["--out", str(out), "--device", "cpu", "--examples", "200", "--evaluate", "0",
                    "--ar-steps", str(recipe.ar_steps), "--diffusion-steps",
                    str(recipe.diffusion_steps), *words])
        mine, theirs = (weights(folder / "mini_dimple.pt")
                        for folder in (lab.folder(recipe, 0), out))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs), recipe
        if recipe.diffusion_steps:
            result = json.loads((out / "result.json").read_text())
            assert lab.above_floor(recipe, 1) == [result["nats_above_floor"]["all"]]


def test_recipes_share_the_ar_phases_that_are_alike(tmp_path, tiny_lab):
    lab = tiny_lab(tmp_path)
    kinds = [Recipe(2, 4), Recipe(2, 4, variant=("flat",)), Recipe(2, 4, "one"),
             Recipe(2, 4, examples=9), Recipe(0, 6)]
    missing = lab.missing({str(kind): Asked(kind, 5) for kind in kinds})
    assert set(missing) == set(itertools.product(
        [*kinds, Recipe(2, 0), Recipe(2, 0, "one"), Recipe(2, 0, examples=9)], range(2)))
    assert len({lab.folder(*one) for one in missing}) == len(missing)


def test_all_claims_take_at_most_60_models(tmp_path, tiny_lab):
    made = tiny_lab(tmp_path, seeds=5)
    models = {one for plan, *_ in CLAIMS.values() for one in made.missing(plan(made))}
    assert sum(recipe.diffusion_steps > 0 for recipe, _ in models) <= 60


def test_training_that_fails_is_told_with_its_file(tmp_path, tiny_lab):
    lab, recipe = tiny_lab(tmp_path), Recipe(2, 0, examples=2)  # too few to learn the words from
    with pytest.raises(ValueError, match="train.txt: this training failed"):
        lab.train([(recipe, 0)], lambda *one: None)
    assert "too few" in (lab.folder(recipe, 0) / "train.txt").read_text()
    assert lab.missing({"it": Asked(recipe, 1)}) == [(recipe, 0)]


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
    while not any(models.glob("ar_4-diffusion_8-*/log.csv")):
        assert process.poll() is None
        time.sleep(0.1)  # until the second model
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to the lab and to its processes
    error = process.communicate()[1]
    assert process.returncode == 130, error
    assert "python -m lab: stopped" in error and "Traceback" not in error
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


def test_a_mean_over_scenes_is_of_what_the_seeds_say_together():
    """Seeds that differ scene by scene, equal on average: no scene is better than another."""
    assert mean_interval([[0.0, 1.0], [1.0, 0.0]]) == (0.5, 0.5, 0.5)
    half = 1.96 * math.sqrt(0.5) / math.sqrt(2)  # of the scenes' means, 0 and 1
    assert mean_interval([[0, 1]] * 3) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_a_caption_that_fills_its_window_has_no_end():
    model, tokenizer = load(SHIPPED)[:2]
    scenes = Scenes(model.config, tokenizer, 2, CPU)
    for id, wrong in ((0, "no end"), (model.config.eos_id, "opening")):
        found = graded(exact_way(scenes, lambda step: torch.full_like(step.tokens, id)), scenes)
        assert found.wrong == [wrong] * 2


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
def test_training_runs_to_its_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(train.PRESETS["tiny"], "batch_size", 8)
    written = tmp_path / "f.json"
    main(["speed", "training", "--repeats", "1", "--json", str(written), "--device", "cpu"])
    for row in json.loads(written.read_text())["phases"]:
        assert 0 < row["share_of_matrix_rate"] and sum(row["shares"].values()) == pytest.approx(1)
    assert "| diffusion | " in capsys.readouterr().out


def test_a_rule_that_names_nothing_gets_a_hint(tmp_path, capsys):
    """On the board, of a folder, too, and beside the page."""
    (tmp_path / "nan.py").write_text(
        "def rule(step):\n    return (step.probs * step.probs.log()).sum(-1) > -0.1  # 0 * log 0")
    for words in (["rules", "--scenes", "2", "--only", "maskgit:8", "--rule", tmp_path],
                  ["show", "--on", "exact", "--rule", tmp_path / "nan.py", "--rule", "maskgit:1"]):
        suffix = {"rules": "png", "show": "html"}[words[0]]
        main([*map(str, words), "--picture", str(tmp_path / f"x.{suffix}")])
        said = [line for line in capsys.readouterr().out.splitlines() if "hint: " in line]
        assert len(said) == 1 and "nan" in said[0] and "no position" in said[0]
