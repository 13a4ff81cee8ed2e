"""bench.py's arithmetic, and that its commands run to their tables."""
import argparse
import json
import random

import pytest
import torch
from conftest import refused_by

import bench
import train
from data import toy


refused = refused_by(bench.main)


def test_wilson_covers_what_it_should():
    assert bench.wilson(0, 100)[0] == pytest.approx(0, abs=1e-12) and bench.wilson(100, 100)[1] == pytest.approx(1)
    assert bench.wilson(490, 500) == pytest.approx((0.9637, 0.9890), abs=1e-3)
    rng = random.Random(0)
    covered = 0
    for _ in range(1000):
        share = rng.uniform(0.5, 0.99)
        low, high = bench.wilson(sum(rng.random() < share for _ in range(200)), 200)
        covered += low <= share <= high
    assert 0.93 <= covered / 1000 <= 0.97


def test_pareto_by_its_definition():
    rng = random.Random(1)
    for _ in range(50):
        rows = [dict(right=rng.randint(0, 4), passes=rng.randint(0, 4))
                for _ in range(rng.randint(1, 8))]
        for row, on_front in zip(rows, bench.pareto(rows)):
            beaten = any((o["right"] > row["right"] and o["passes"] <= row["passes"]) or
                         (o["right"] == row["right"] and o["passes"] < row["passes"]) for o in rows)
            assert on_front == (not beaten)


def test_one_label_for_marks_on_each_other():
    def row(name, right, passes, yours=False):
        return dict(rule=name, right=right, passes=passes, yours=yours, front=False)
    rows = [row("a", 0.99, 5), row("b", 0.985, 5.1), row("mine", 0.99, 5, True), row("far", 0.99, 9), row("low", 0.5, 5)]
    assert bench.labels(rows) == {"a": "", "b": "", "mine": "mine and 2 more", "far": "far", "low": "low"}


def test_the_leaderboard_and_a_readers_rule(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "RULES", ("confident:0.9", "maskgit:12", "random_order:24"))
    (tmp_path / "mine.py").write_text("rule = lambda step: step.confidence > 0.9\n")
    (tmp_path / "twice.py").write_text("def rule(step):\n    step.look(step.tokens)\n"
                                       "    return step.confidence > 0.9\n")
    bench.main(["rules", "--scenes", "10", "--device", "cpu", "--json", str(tmp_path / "f.json"),
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
    monkeypatch.setattr(bench, "RULES", ("confident:0.9",))
    (tmp_path / "good.py").write_text("rule = lambda step: step.confidence > 0.9\n")
    words = ["--rule", tmp_path / "good.py:3", "--rule", tmp_path / "good.py"]  # the first fails
    for name, (code, _) in BAD.items():
        (tmp_path / f"{name}.py").write_text(code)
        words += ["--rule", tmp_path / f"{name}.py"]
    words += ["--picture", tmp_path / "x.png", "--json", tmp_path / "f.json", "--device", "cpu"]
    bench.main(["rules", "--scenes", "2", *map(str, words)])
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
    monkeypatch.setattr(bench, "RULES", ("confident:0.9",))
    (tmp_path / "mine.py").write_text("from mini_dimple import full as look\n")
    figures, written = [], tmp_path / "f.json"
    for look in ("full", str(tmp_path / "mine.py")):
        bench.main(["rules", "--scenes", "3", "--look", look, "--json", str(written),
                    "--picture", str(tmp_path / "x.png"), "--device", "cpu"])
        rows = json.loads(written.read_text())
        figures.append([(row["rule"], row["right"], row["passes"]) for row in rows])
    assert figures[0] == figures[1] and f"look {look};" in capsys.readouterr().out
    assert "--look fast: unknown" in refused(capsys, "rules", "--look", "fast")


def test_decode_runs_to_its_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "SWEEP", ((9, 12),))
    monkeypatch.setattr(bench, "BATCH", 2)
    bench.main(["decode", "--repeats", "2", "--json", str(tmp_path / "f.json"), "--device", "cpu"])
    figures = json.loads((tmp_path / "f.json").read_text())
    assert 0 < figures["share_in_model"] < 1 and len(figures["ways"]) == 8 and len(figures["prefill"]) == 1
    assert "greedy AR, KV cache" in capsys.readouterr().out


def test_checkpoints_that_do_not_fit(tmp_path, capsys):
    state = torch.load(bench.SHIPPED, weights_only=True)
    for change, message in (({"trained_on": "pictures"}, "your own pictures"), ({"phase": "ar"}, "'diffusion'"), ({"prompt": "?"}, "not of one run")):
        torch.save({**state, "config": {**state["config"], **change}}, tmp_path / "x.pt")
        assert message in refused(capsys, "rules", "--checkpoint", tmp_path / "x.pt")
    assert "--ar-checkpoint" in refused(capsys, "decode", "--ar-checkpoint", bench.SHIPPED)


def test_mistakes_are_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "must end in .png" in refused(capsys, "rules", "--picture", tmp_path / "x.jpg")
    assert "file" in refused(capsys, "decode", "--json", tmp_path / "file" / "x.json")
    assert "unknown" in refused(capsys, "rules", "--rule", "other")
    assert "--scenes" in refused(capsys, "rules", "--scenes", 0)
    assert "none.pt" in refused(capsys, "decode", "--checkpoint", "none.pt")
    assert "COMMAND" in refused(capsys)
    assert "at most 10" in refused(capsys, "recipe", "--seeds", 11) and "1 or more" in refused(capsys, "all", "--seeds", 0)
    assert str(tmp_path / "file") in refused(capsys, "loss", "--quick", "--out", tmp_path / "file")


# ---------------------------------------------------------------- claims

@pytest.fixture
def tiny_lab(monkeypatch):
    """Two steps of each phase, 200 training scenes; -> lab(out, **options)."""
    monkeypatch.setitem(train.TRAINING["tiny"], "examples", 200)
    monkeypatch.setitem(train.TRAINING["tiny"], "batch_size", 8)
    monkeypatch.setitem(train.TRAINING["tiny"], "ar_steps", 2)
    monkeypatch.setitem(train.TRAINING["tiny"], "diffusion_steps", 4)
    monkeypatch.setattr(train, "HELD_OUT_SCENES", 2)
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    return lambda out, **options: bench.Lab(argparse.Namespace(**{**dict(out=out, quick=False, seeds=1, scenes=4), **options}), torch.device("cpu"))


def weights(path):
    return torch.load(path, weights_only=True)["weights"]


@pytest.mark.parametrize("words", [[], ["--weighting", "elbo"], ["--recipe", "diffusion"], ["--recipe", "ar"], ["--prefix-mask"]])
def test_the_labs_models_are_those_of_train_py(tmp_path, tiny_lab, words):
    """Sharing the AR phase and stopping to keep weights on the way changes nothing, bit for bit."""
    lab = tiny_lab(tmp_path / "lab")
    settings = train.settings_from(train.parse(["--device", "cpu", *words])[1])
    recipe = bench.Recipe(settings["ar_steps"], settings["diffusion_steps"], *(settings[name] for name in bench.Recipe._fields[2:]))
    for made, seed in lab.missing({"it": recipe}):
        lab.train(made, seed)
    assert not lab.missing({"it": recipe})
    train.main(["--device", "cpu", "--out", str(tmp_path / "o"), *words])
    mine, theirs = weights(lab.path(recipe, 0)), weights(tmp_path / "o" / "mini_dimple.pt")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert lab.settings(recipe, 0) == settings
    assert bench.load(lab.path(recipe, 0))[0].config == bench.load(tmp_path / "o" / "mini_dimple.pt")[0].config


@pytest.mark.slow
def test_all_goes_on_after_an_interruption(tmp_path, tiny_lab, monkeypatch, capsys):
    """What was trained and measured before is not done again, and the figures are those of a run that was not interrupted."""
    monkeypatch.setattr(bench, "CLAIMS", {name: bench.CLAIMS[name] for name in ("loss", "recipe")})
    words = ["all", "--seeds", "1", "--scenes", "2", "--device", "cpu"]
    bench.main([*words, "--out", str(tmp_path / "whole")])
    steps, real = [], train.phase_loss
    def stopping(*rest):
        steps.append(1)
        if len(steps) == stop_at:
            raise KeyboardInterrupt
        return real(*rest)
    monkeypatch.setattr(train, "phase_loss", stopping)
    stop_at = 0
    bench.main([*words, "--out", str(tmp_path / "counted")])
    total = len(steps)
    for stop_at in (total - 1, 3):  # in the last model of the second claim, then in the first model
        steps.clear()
        out = tmp_path / f"broken{stop_at}"
        with pytest.raises(SystemExit) as end:
            bench.main([*words, "--out", str(out)])
        assert end.value.code == 130 and "goes on with what is trained" in capsys.readouterr().err
        if stop_at > 3:
            before = (out / "loss.md").stat().st_mtime_ns
        bench.main([*words, "--out", str(out)])
        assert len(steps) < total + 8, "no finished model is trained again"
        if stop_at > 3:
            assert (out / "loss.md").stat().st_mtime_ns == before, "nor a finished claim measured"
        for name in ("loss.csv", "recipe.csv", "loss.md", "recipe.md"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "| loss | fully right |" in capsys.readouterr().out and (out / "recipe.png").exists()


def test_intervals_cover_what_they_should():
    """Shares of scenes under models that differ by seed: the interval holds the true mean in at least 95 of 100 cases."""
    rng = random.Random(0)
    for seeds, spread, hard in ((1, 0.0, 0.0), (3, 0.0, 0.0), (3, 0.05, 0.0), (3, 0.0, 0.1), (3, 0.0, 1.0)):
        covered = 0
        for _ in range(400):
            of_seed = [rng.gauss(0, spread) for _ in range(seeds)]
            of_scene = [rng.choice((-1, 1)) * 0.1 * hard for _ in range(200)]  # shared by the seeds: all may fail on the same scenes
            low, high = bench.share_interval([[rng.random() < 0.9 + a + b for b in of_scene] for a in of_seed])[1:]
            covered += low <= 0.9 <= high
        assert covered / 400 >= 0.93
    assert bench.share_interval([[True] * 50] * 3) == pytest.approx((1, bench.wilson(50, 50)[0], 1)), "all right is no certainty"
    assert bench.mean_interval([[1.0, 2.0, 3.0]] * 2)[0] == 2
    low, high = bench.gap_interval([[1, 0, 1, 1]] * 3, [[1, 0, 1, 0]] * 3)[1:]
    assert low < 0.25 < high
    assert bench.gap_interval([[0] * 9] * 2 + [[1] * 9], [[1] * 9] * 3)[1] == -1, "no share is below 0"
    gap, low, high = bench.gap_interval([[1, 0] * 50] * 3, [[1, 0] * 50] * 3)
    assert gap == 0 and low == -high and 0.01 < high < 0.03, "no difference seen is no proof of none"


def test_a_change_of_code_or_device_trains_and_measures_anew(tmp_path, tiny_lab, monkeypatch):
    lab = tiny_lab(tmp_path)
    before = lab.folder(lab.default, 0)
    assert tiny_lab(tmp_path).folder(lab.default, 0) == before != lab.folder(lab.default, 1)
    with monkeypatch.context() as changed:
        changed.setattr(bench, "TRAINED_BY", (*bench.TRAINED_BY, bench.table))
        assert tiny_lab(tmp_path).folder(lab.default, 0) != before
    for made, seed in lab.missing({"it": bench.Recipe(2, 0)}):
        lab.train(made, seed)
    (lab.folder(bench.Recipe(2, 0), 0) / "last.pt").unlink()
    assert lab.missing({"it": bench.Recipe(2, 0)}), "an AR phase that cannot be gone on from is trained again"


def test_priors_give_what_they_say_and_are_judged_by_it():
    model, tokenizer = bench.load(bench.SHIPPED)
    scenes = bench.Scenes(model, tokenizer, 30, torch.device("cpu"))
    for ids, scene in zip(scenes.responses, scenes.split.scenes):
        priors = bench.make_priors(ids, scene, model.config, tokenizer, scenes.board, random.Random(0))
        assert len(priors) == 8 + (len(scene) > 1)
        follow = lambda tokens, prior: bench.follow(tokens, prior, tokenizer, scenes.board, model.config)
        for name, prior in priors.items():
            given = prior.window != model.config.mask_id
            words = [tokenizer.decode([i]) for i in prior.window[given].tolist()]
            if name == "wording: opening and first preposition":
                assert words[-1].strip() in toy.PREPOSITIONS and len(words) == 4
            if name == "one fact: the first colour":
                assert words == [" " + scene[0].colour]
            if name == "blanks: first object and its preposition":
                assert tokenizer.decode(ids[~given].tolist()).split()[:3] == [scene[0].size, scene[0].colour, scene[0].shape]
            if "wrong" in name:
                assert words[-1].strip() in toy.COLOURS and words[-1].strip() != scene[0].colour
            assert follow(ids, prior) == (("wrong" not in name and not prior.shorter),) * 2, name
        lied = priors["one fact, wrong"]
        tokens = torch.where(lied.window == model.config.mask_id, ids, lied.window)
        assert follow(tokens, lied) == (True, True)
        if len(scene) > 1:
            fewer = tokenizer.encode(toy.caption(scene[1:], scenes.board, toy.OPENINGS[1], "in"))
            tokens = torch.tensor(fewer + [model.config.eos_id] * (len(ids) - len(fewer)))
            assert follow(tokens, priors["length of one object fewer"]) == (True, True)
        inside = torch.cat([ids[:9], torch.tensor([model.config.eos_id]), ids[9:-1]])
        assert follow(ids, priors["nothing"]) == (True, True) and follow(inside, priors["nothing"]) == (True, False), "an EOS inside"


def test_training_runs_to_its_tables(tmp_path, tiny_lab, capsys):
    bench.main(["training", "--repeats", "1", "--json", str(tmp_path / "f.json"), "--device", "cpu"])
    for row in json.loads((tmp_path / "f.json").read_text())["phases"]:
        assert 0 < row["share_of_matrix_rate"] and sum(row[f"share_{kind}"] for kind in (*bench.KINDS, "optimizers", "batch")) == pytest.approx(1, abs=1e-3)
    assert "Where a step's time goes" in capsys.readouterr().out
