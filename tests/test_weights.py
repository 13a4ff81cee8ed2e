"""The weights that come with the repository: small, as accurate as their text says, and what sample.py falls back to."""
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import decoded

import bench
import train
from data import DESCRIBE, toy
from mini_dimple import confident, decode_ar, load
from rules import resolve

DATA = Path(__file__).parent.parent / "data"
RESULT = json.loads(re.search(r"```json\n(.*?)```", (DATA / "WEIGHTS.md").read_text(), re.S)[1])


@pytest.fixture(scope="module")
def shipped():
    return [load(DATA / name) for name in ("mini_dimple.pt", "ar_phase.pt")]


def test_size_and_kind(shipped):
    assert sum((DATA / name).stat().st_size for name in ("mini_dimple.pt", "ar_phase.pt")) <= 8 * 2 ** 20
    (model, tokenizer), (ar_model, ar_tokenizer) = shipped
    assert model.config.phase == "diffusion" and ar_model.config.phase == "ar" and tokenizer.merges == ar_tokenizer.merges
    assert all(weight.dtype == torch.float32 for weight in model.parameters()), "computed in single precision"


def test_accuracy_on_held_out_scenes(shipped):
    (model, tokenizer), (ar_model, _) = shipped
    scenes = bench.Scenes(model, tokenizer, 200, torch.device("cpu"))
    figures = bench.grade_rule(lambda rows: decoded(model, *scenes[rows], confident(0.9)), scenes)
    assert figures["right"] >= 0.96  # 98% of 200, less two standard deviations
    assert figures["tokens_per_pass"] >= 4
    ar = bench.grade_rule(lambda rows: decode_ar(ar_model, *scenes[rows][:2], 48), scenes)
    assert ar["right"] >= 0.96


def test_remasking_ends_and_helps_a_bold_threshold(shipped):
    (model, tokenizer), _ = shipped
    scenes = bench.Scenes(model, tokenizer, 200, torch.device("cpu"))
    bold, mended = (bench.grade_rule(lambda rows: decoded(model, *scenes[rows], rule), scenes)
                    for rule in (resolve("confident:0.3"), resolve("remask:0.3")))
    assert mended["right"] > bold["right"] and mended["passes"] < 48


@pytest.mark.slow
def test_accuracy_on_2000_held_out_scenes(shipped):
    model, tokenizer = shipped[0]
    split = toy.examples(toy.TOYS["tiny"], train.HELD_OUT_SCENES, 0, held_out=True, instruction=DESCRIBE)
    figures, _, _ = train.evaluate(model, tokenizer, split, "diffusion")
    assert figures["correct"] >= 0.98 and figures["response_tokens"] / figures["iterations"] >= 4
    assert figures["correct"] == pytest.approx(RESULT["correct"], abs=0.005), "the figure beside the weights is theirs"
