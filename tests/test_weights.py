"""The weights that come with the repository: small, as accurate as their text says, and what
sample.py falls back to."""
import json
import re

import pytest
import torch

from data import DESCRIBE, toy
from lab.board import grade_rule
from lab.checkpoint import SHIPPED, SHIPPED_AR, SHIPPED_WEAK, load
from lab.evaluate import Floor, Scenes, decoded, evaluate, exact_way
from lab.training import HELD_OUT_SCENES
from mini_dimple import decode_ar
from rules import resolve
from train import PRESETS

CPU = torch.device("cpu")
TEXT = SHIPPED.with_name("README.md").read_text()
RESULT = json.loads(re.search(r"```json\n(.*?)```", TEXT, re.S)[1])


@pytest.fixture(scope="module")
def shipped():
    return load(SHIPPED), load(SHIPPED_AR), load(SHIPPED_WEAK)


@pytest.fixture(scope="module")
def scenes(shipped):
    return Scenes(shipped[0].model.config, shipped[0].tokenizer, 50, CPU)


def figures(model, scenes, rule="confident:0.9", temperature=0.0):
    return grade_rule(lambda rows: decoded(model, scenes[rows], resolve(rule),
                                           temperature=temperature), scenes)[1]


def test_size_and_kind(shipped):
    assert sum(path.stat().st_size for path in (SHIPPED, SHIPPED_AR, SHIPPED_WEAK)) <= 8 * 2 ** 20
    whole, ar, weak = shipped
    assert [found.origin["phase"] for found in shipped] == ["diffusion", "ar", "diffusion"]
    steps = PRESETS["tiny"]["ar_steps"], PRESETS["tiny"]["diffusion_steps"]
    assert [ar.origin["steps"], whole.origin["steps"]] == [steps[0], sum(steps)]
    assert steps[0] < weak.origin["steps"] < sum(steps)
    for model, tokenizer, origin in shipped:
        assert toy.of(origin) == toy.TOYS["tiny"] and origin["seed"] == whole.origin["seed"]
        assert tokenizer.merges == whole.tokenizer.merges and model.config == whole.model.config
        # stored in half precision, computed in single
        assert all(weight.dtype == torch.float32 for weight in model.parameters())


def test_accuracy_on_held_out_scenes(shipped, scenes):
    """And they decide as the perfect model does: in as many iterations. Weak ones leave room for
    rules: remasking helps a bold threshold."""
    (model, _, _), (ar_model, _, _), (weak, _, _) = shipped
    greedy, sampled = (figures(model, scenes, temperature=heat) for heat in (0.0, 1.0))
    assert greedy["right"] >= 0.98 and sampled["right"] >= 0.98
    exact = grade_rule(exact_way(scenes, resolve("confident:0.9")), scenes)[1]
    assert exact["right"] == 1
    assert greedy["iterations"] == pytest.approx(exact["iterations"], abs=0.1)
    ar = grade_rule(lambda rows: decode_ar(ar_model, *scenes[rows][:2], 48), scenes)[1]
    assert ar["right"] >= 0.96
    assert 0.3 <= figures(weak, scenes)["right"] <= greedy["right"] - 0.03
    bold, mended = (figures(model, scenes, rule) for rule in ("confident:0.3", "remask:0.3"))
    assert mended["right"] > bold["right"] and mended["passes"] < 48


def test_the_loss_is_almost_at_its_floor(shipped, scenes):
    model, tokenizer, _ = shipped[0]
    above = Floor(scenes.board, model.config, tokenizer, CPU, n=500)(model)
    assert 0 < above["all"] < 0.003
    assert above == pytest.approx(RESULT["nats_above_floor"], abs=0.0005)


@pytest.mark.slow
def test_accuracy_on_all_held_out_scenes(shipped):
    model, tokenizer, origin = shipped[0]
    split = toy.examples(toy.of(origin), HELD_OUT_SCENES, 0, held_out=True, instruction=DESCRIBE)
    found, _, _ = evaluate(model, tokenizer, split, origin, CPU)
    assert found["correct"] >= 0.99
    # the figures beside the weights are theirs
    for name, close in (("correct", 0.003), ("correct_at_temperature_1", 0.01),
                        ("count_correct", 0.003), ("iterations", 0.05), ("response_tokens", 1e-6)):
        assert found[name] == pytest.approx(RESULT[name], abs=close), name
