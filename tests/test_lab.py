"""The lab's arithmetic, and that its commands run to their tables."""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import random_case, refused_by

import lab.__main__
from data import toy
from lab import board, models, results, speed
from lab.checkpoint import ROOT, SHIPPED, load
from lab.claims import follow, make_priors
from lab.evaluate import Scenes
from lab.intervals import gap_interval, mean_interval, share_interval, wilson
from lab.models import Lab, Recipe
from lab.variants import PrefixMasked, unseen
from mini_dimple import prefilled


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


def test_pareto_by_its_definition():
    rng = random.Random(1)
    for _ in range(50):
        rows = [dict(right=rng.randint(0, 4), passes=rng.randint(0, 4))
                for _ in range(rng.randint(1, 8))]
        for row, on_front in zip(rows, board.pareto(rows)):
            beaten = any((o["right"] > row["right"] and o["passes"] <= row["passes"]) or
                         (o["right"] == row["right"] and o["passes"] < row["passes"]) for o in rows)
            assert on_front == (not beaten)


def test_one_label_for_marks_on_each_other():
    def row(name, right, passes, yours=False):
        return dict(rule=name, right=right, passes=passes, yours=yours, front=False)
    rows = [row("a", 0.99, 5), row("b", 0.985, 5.1), row("mine", 0.99, 5, True),
            row("far", 0.99, 9), row("low", 0.5, 5)]
    assert board.labels(rows) == {
        "a": "", "b": "", "mine": "mine and 2 more", "far": "far", "low": "low"}


def test_the_leaderboard_and_a_readers_rule(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(board, "RULES", ("confident:0.9", "maskgit:12", "random_order:24"))
    (tmp_path / "mine.py").write_text("rule = lambda step: step.confidence > 0.9\n")
    (tmp_path / "twice.py").write_text("def rule(step):\n    step.look(step.tokens)\n"
                                       "    return step.confidence > 0.9\n")
    main(["rules", "--scenes", "10", "--device", "cpu", "--json", str(tmp_path / "f.json"),
                "--rule", str(tmp_path / "mine.py"), "--rule", str(tmp_path / "twice.py"),
                "--picture", str(tmp_path / "p" / "front.png")])
    out = capsys.readouterr().out
    figures = {row["rule"]: row for row in json.loads((tmp_path / "f.json").read_text())}
    mine, twice = figures["mine"], figures["twice"]
    assert mine["yours"] and "★" in out and (tmp_path / "p" / "front.png").exists()
    for key in ("right", "well_formed", "iterations", "passes", "tokens_per_pass", "front"):
        assert mine[key] == figures["confident:0.9"][key], "built-in rules have no privilege"
    assert twice["iterations"] == mine["iterations"] == mine["passes"]
    assert twice["passes"] == 2 * mine["passes"], "its own looks count"
    assert twice["tokens_per_pass"] == pytest.approx(mine["tokens_per_pass"] / 2)
    assert figures["maskgit:12"]["passes"] == 4 and figures["random_order:24"]["passes"] == 2
    assert "AR phase, greedy, KV cache" in figures


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
    figures = json.loads((tmp_path / "f.json").read_text())
    assert [row["rule"] for row in figures[:2]] == ["good", "confident:0.9"]
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert len(rows) == len(figures) and sum("error" in row for row in figures) == 1 + len(BAD)
    assert len({row.count("|") for row in rows}) == 1
    for name, (_, message) in {**BAD, "good.py:3": ("", "`rule` takes no number")}.items():
        found = [row for row in rows if f"/{name}" in row and "★" in row]
        assert len(found) == 1 and message in found[0], name
    assert "empty.py" in refused(capsys, "rules", "--rule", tmp_path / "empty.py",
                                 "--rule", tmp_path / "exits.py"), "nothing of yours is left"


def test_the_leaderboard_through_a_look_of_ones_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(board, "RULES", ("confident:0.9",))
    (tmp_path / "mine.py").write_text("from mini_dimple import full as look\n")
    figures, written = [], tmp_path / "f.json"
    for look in ("full", str(tmp_path / "mine.py")):
        main(["rules", "--scenes", "3", "--look", look, "--json", str(written),
                    "--picture", str(tmp_path / "x.png"), "--device", "cpu"])
        rows = json.loads(written.read_text())
        figures.append([(row["rule"], row["right"], row["passes"]) for row in rows])
    assert figures[0] == figures[1] and f"look {look};" in capsys.readouterr().out
    assert "--look fast: unknown" in refused(capsys, "rules", "--look", "fast")


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
                            ({"phase": "ar"}, "'diffusion'"),
                            ({"trained_on": "small"}, "not of one run")):
        torch.save({**state, "origin": {**state["origin"], **change}}, tmp_path / "x.pt")
        assert message in refused(capsys, "rules", "--checkpoint", tmp_path / "x.pt")
    assert "--ar-checkpoint" in refused(capsys, "speed", "decode", "--ar-checkpoint", SHIPPED)


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
    assert "'other' is none; choose from recipe" in refused(capsys, "claims", "other")
    assert "choose one" in refused(capsys, "claims", "--quick", "--write")
    out = tmp_path / "file"
    assert str(out) in refused(capsys, "claims", "loss", "--quick", "--out", out)


# ---------------------------------------------------------------- claims

@pytest.fixture
def tiny_lab(monkeypatch):
    """Four steps, 200 training scenes; -> lab(out, **options)."""
    monkeypatch.setitem(models.TRAINING["tiny"], "ar_steps", 2)
    monkeypatch.setitem(models.TRAINING["tiny"], "diffusion_steps", 4)

    def make(out, **options):
        args = dict(out=out, quick=False, seeds=1, scenes=4) | options
        made = Lab(argparse.Namespace(**args), CPU)
        made.few = ["--examples", 200]
        return made
    return make


def weights(path):
    return torch.load(path, weights_only=True)["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe, words", [
    (Recipe(2, 4), []), (Recipe(0, 6), ["--recipe", "diffusion"]),
    (Recipe(6, 0), ["--recipe", "ar"]),
    (Recipe(2, 4, weighting="elbo", padding="none"), ["--weighting", "elbo", "--padding", "none"]),
    (Recipe(2, 4, complementary=True, prefix_mask=True), ["--complementary", "--prefix-mask"])])
def test_the_labs_models_are_those_of_train_py(tmp_path, tiny_lab, recipe, words):
    """Sharing the AR phase and keeping weights on the way changes nothing, bit for bit."""
    lab = tiny_lab(tmp_path / "lab")
    lab.seeds = [1]
    for made, seed in lab.missing({"it": recipe}):
        lab.train(made, seed)
    assert not lab.missing({"it": recipe})
    steps = []
    if "--recipe" not in words:
        steps = ["--ar-steps", recipe.ar_steps, "--diffusion-steps", recipe.diffusion_steps]
    elif recipe.ar_steps:
        steps = ["--ar-steps", recipe.ar_steps]
    else:
        steps = ["--diffusion-steps", recipe.diffusion_steps]
    command = [sys.executable, ROOT / "train.py", "--out", tmp_path / "o", "--device", "cpu",
               "--examples", 200, "--evaluate", 0, "--seed", 1, *steps, *words]
    subprocess.run([*map(str, command)], check=True, capture_output=True)
    mine, theirs = weights(lab.path(recipe, 1)), weights(tmp_path / "o" / "mini_dimple.pt")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert all(lab.path(recipe, 1, step).exists() for step in lab.kept(recipe))
    model, _, origin = load(lab.path(recipe, 1))
    assert origin["prefix_mask"] == recipe.prefix_mask and origin["steps"] == recipe.steps
    assert origin["seed"] == 1


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


def test_training_that_fails_is_told_with_its_reason(tmp_path, tiny_lab):
    lab = tiny_lab(tmp_path)
    lab.few = ["--examples", "many"]
    with pytest.raises(ValueError, match="seed_0-cpu-.*: .*--examples"):
        lab.train(Recipe(2, 0), 0)
    lab.few = ["--examples", 100]
    lab.train(Recipe(2, 0), 0)
    assert not lab.missing({"it": Recipe(2, 0)})


@pytest.mark.slow
def test_claims_go_on_after_an_interruption(tmp_path):
    """What was trained and measured before is not done again, and the figures are those of a run
    that was not interrupted."""
    words = [sys.executable, "-m", "lab", "claims", "loss", "--quick", "--device", "cpu", "--out"]
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
    for name in ("loss.csv", "loss.md"):
        mine, theirs = ((out / "quick" / name).read_text() for out in (broken, whole))
        assert mine.replace(str(broken), str(whole)) == theirs
    measured = (broken / "quick" / "loss.md").stat().st_mtime_ns
    done = subprocess.run([*words, broken], check=True, capture_output=True, cwd=ROOT)
    assert (broken / "quick" / "loss.md").stat().st_mtime_ns == measured, "nor measured again"
    assert b"| loss | fully right |" in done.stdout


def test_a_prefix_that_never_saw_the_window_is_the_prefix_masks():
    """`unseen` on any weights is prefilling on the same weights read with a prefix mask."""
    model, images, prompt, window = random_case(0, 3, 9)
    masked = PrefixMasked(model.config).double().eval()
    masked.load_state_dict(model.state_dict())
    for tokens in (window, window.masked_fill(window > 9, 1)):
        mine = unseen(model, images, prompt)(tokens)
        torch.testing.assert_close(mine, prefilled(masked, images, prompt)(tokens))


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
    for ids, scene in zip(scenes.responses, scenes.split.scenes):
        priors = make_priors(ids, scene, config, tokenizer, scenes.board, random.Random(0))
        assert len(priors) == 8 + (len(scene) > 1)
        followed = lambda tokens, prior: follow(tokens, prior, tokenizer, scenes.board, config)
        for name, prior in priors.items():
            given = prior.window != config.mask_id
            words = [tokenizer.decode([i]) for i in prior.window[given].tolist()]
            if name == "wording: opening and first preposition":
                assert words[-1].strip() in toy.PREPOSITIONS and len(words) == 4
            if name == "one fact: the first colour":
                assert words == [" " + scene[0].colour]
            if name == "blanks: first object and its preposition":
                blanks = tokenizer.decode(ids[~given].tolist()).split()[:3]
                assert blanks == [scene[0].size, scene[0].colour, scene[0].shape]
            if "wrong" in name:
                assert words[-1].strip() in toy.COLOURS and words[-1].strip() != scene[0].colour
            assert followed(ids, prior) == (("wrong" not in name and not prior.shorter),) * 2, name
        lied = priors["one fact, wrong"]
        tokens = torch.where(lied.window == config.mask_id, ids, lied.window)
        assert followed(tokens, lied) == (True, True)
        if len(scene) > 1:
            fewer = tokenizer.encode(toy.caption(scene[1:], scenes.board, toy.OPENINGS[1], "in"))
            tokens = torch.tensor(fewer + [config.eos_id] * (len(ids) - len(fewer)))
            assert followed(tokens, priors["length of one object fewer"]) == (True, True)
        inside = torch.cat([ids[:9], torch.tensor([config.eos_id]), ids[9:-1]])
        assert followed(ids, priors["nothing"]) == (True, True)
        assert followed(inside, priors["nothing"]) == (True, False), "an EOS inside"


def test_training_runs_to_its_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(speed.TRAINING["tiny"], "batch_size", 8)
    written = tmp_path / "f.json"
    main(["speed", "training", "--repeats", "1", "--json", str(written), "--device", "cpu"])
    kinds = *speed.KINDS, "optimizers", "batch"
    for row in json.loads(written.read_text())["phases"]:
        assert 0 < row["share_of_matrix_rate"]
        assert sum(row[f"share_{kind}"] for kind in kinds) == pytest.approx(1, abs=1e-3)
    assert "Where a step's time goes" in capsys.readouterr().out
