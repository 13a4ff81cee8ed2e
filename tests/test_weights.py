"""The weights that come with the repository: small, as accurate as their text says, and what
sample.py falls back to."""
import json
import re

import pytest
import torch

from data import DESCRIBE, toy
from lab.board import grade_rule
from lab.checkpoint import SHIPPED, SHIPPED_AR, load
from lab.evaluate import Scenes, decoded, evaluate
from lab.training import HELD_OUT_SCENES
from mini_dimple import decode_ar
from rules import resolve

CPU = torch.device("cpu")
TEXT = SHIPPED.with_name("README.md").read_text()
RESULT = json.loads(re.search(r"```json\n(.*?)```", TEXT, re.S)[1])


@pytest.fixture(scope="module")
def shipped():
    return load(SHIPPED), load(SHIPPED_AR)


@pytest.fixture(scope="module")
def scenes(shipped):
    return Scenes(shipped[0].model.config, shipped[0].tokenizer, 200, CPU)


def test_size_and_kind(shipped):
    assert sum(path.stat().st_size for path in (SHIPPED, SHIPPED_AR)) <= 8 * 2 ** 20
    (model, tokenizer, origin), (_, ar_tokenizer, ar_origin) = shipped
    assert (origin["phase"], ar_origin["phase"]) == ("diffusion", "ar")
    assert tokenizer.merges == ar_tokenizer.merges
    # stored in half precision, computed in single
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


def test_accuracy_on_held_out_scenes(shipped, scenes):
    (model, _, _), (ar_model, _, _) = shipped
    rule = resolve("confident:0.9")
    figures = grade_rule(lambda rows: decoded(model, scenes[rows], rule), scenes)
    assert figures["right"] >= 0.96  # 98% of 200, less two standard deviations
    assert figures["tokens_per_pass"] >= 4
    ar = grade_rule(lambda rows: decode_ar(ar_model, *scenes[rows][:2], 48), scenes)
    assert ar["right"] >= 0.96


def test_remasking_ends_and_helps_a_bold_threshold(shipped, scenes):
    model = shipped[0].model
    bold, mended = (grade_rule(lambda rows: decoded(model, scenes[rows], rule), scenes)
                    for rule in (resolve("confident:0.3"), resolve("remask:0.3")))
    assert mended["right"] > bold["right"] and mended["passes"] < 48


@pytest.mark.slow
def test_accuracy_on_2000_held_out_scenes(shipped):
    model, tokenizer, origin = shipped[0]
    split = toy.examples(toy.TOYS["tiny"], HELD_OUT_SCENES, 0, held_out=True, instruction=DESCRIBE)
    figures, _, _ = evaluate(model, tokenizer, split, origin, CPU)
    assert figures["correct"] >= 0.98 and figures["response_tokens"] / figures["iterations"] >= 4
    # the figure beside the weights is theirs
    assert figures["correct"] == pytest.approx(RESULT["correct"], abs=0.005)
