"""bench.py's arithmetic, and that its commands run to their tables."""
import json
import random

import pytest
import torch
from conftest import refused_by

import bench


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
        rows = [dict(right=rng.randint(0, 4), iterations=rng.randint(0, 4)) for _ in range(rng.randint(1, 8))]
        for row, on_front in zip(rows, bench.pareto(rows)):
            beaten = any((o["right"] > row["right"] and o["iterations"] <= row["iterations"]) or
                         (o["right"] == row["right"] and o["iterations"] < row["iterations"]) for o in rows)
            assert on_front == (not beaten)


def test_one_label_for_marks_on_each_other():
    row = lambda name, right, iterations, yours=False: dict(rule=name, right=right, iterations=iterations, yours=yours, front=False)
    rows = [row("a", 0.99, 5), row("b", 0.985, 5.1), row("mine", 0.99, 5, True), row("far", 0.99, 9), row("low", 0.5, 5)]
    assert bench.labels(rows) == {"a": "", "b": "", "mine": "mine and 2 more", "far": "far", "low": "low"}


def test_the_leaderboard_and_a_readers_rule(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "RULES", ("confident:0.9", "maskgit:12", "random_order:24"))
    (tmp_path / "mine.py").write_text("rule = lambda step: step.confidence > 0.9\n")
    bench.main(["rules", "--scenes", "10", "--rule", str(tmp_path / "mine.py"), "--json", str(tmp_path / "f.json"),
                "--picture", str(tmp_path / "p" / "front.png"), "--device", "cpu"])
    out = capsys.readouterr().out
    figures = {row["rule"]: row for row in json.loads((tmp_path / "f.json").read_text())}
    mine = figures[str(tmp_path / "mine.py")]
    assert mine["yours"] and "★" in out and (tmp_path / "p" / "front.png").exists()
    for key in ("right", "well_formed", "iterations", "front"):
        assert mine[key] == figures["confident:0.9"][key], "built-in rules have no privilege"
    assert figures["maskgit:12"]["iterations"] == 4 and figures["random_order:24"]["iterations"] == 2
    assert "AR phase, greedy, KV cache" in figures


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
    (tmp_path / "bad.py").write_text("def rule(step): return 1 / 0")
    assert "ZeroDivisionError" in refused(capsys, "rules", "--scenes", 2, "--rule", tmp_path / "bad.py", "--picture", tmp_path / "x.png")
