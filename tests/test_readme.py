"""What the README says can be done can be done; the training it promises reaches what it promises."""
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bench
import mini_dimple
import sample
import train
from data import Batches, toy

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_every_command_names_a_script_and_options_that_exist():
    text = "\n".join(blocks("sh")) + "\n".join(re.findall(r"`(python [^`]+)`", README))
    commands = re.findall(r"python (\w+)\.py([^`&\n]*)", text)
    assert len(commands) >= 5
    for script, words in commands:
        module = {"train": train, "sample": sample, "bench": bench}[script]
        words = words.split("#")[0].split()
        module.parse(words)  # ends the test if it does not understand them
    for name, module in (("train", train), ("sample", sample)):
        table = re.search(rf"\| `{name}\.py` \|.*?\n\n", README, re.S)[0]
        known = set(module.parse([])[0]._option_string_actions)
        first_cells = [line.split(" | ")[0] for line in table.splitlines()]
        named = set(re.findall(r"--\w[\w-]*", " ".join(first_cells)))
        assert named and named <= known


def test_every_function_and_file_of_the_map_exists():
    table = README.split("| paper | here |")[1].split("\n\n")[0]
    homes = {**vars(mini_dimple), **vars(train), "Batches": Batches}
    names = [n for n in re.findall(r"`([A-Za-z_][\w.]*)`", table) if not n.endswith(".py")]
    names = [n for n in names if n not in ("causal", "prefill", "window")]
    assert len(names) > 12
    for name in names:
        first, *rest = name.split(".")
        assert all(hasattr(homes[first], part) for part in rest)
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_python_in_the_readme_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    rule, notebook = blocks("python")
    names = {}
    exec(notebook, names)
    exec(rule, names)
    assert "tensor([" in capsys.readouterr().out
    out = mini_dimple.decode(names["model"], names["image"], names["prompt"], torch.full((1, 48), names["tokenizer"].mask_id), names["rule"])
    assert torch.equal(out.tokens, names["out"].tokens), "the rule in the README is confident decoding"


def test_the_example_folder_is_a_data_folder_of_held_out_scenes():
    lines = [json.loads(line) for line in (ROOT / "data" / "examples" / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    for line in lines:
        assert (ROOT / "data" / "examples" / line["file_name"]).exists()
        assert toy.is_held_out(toy.parse(line["text"], toy.TOYS["tiny"]))


@pytest.mark.slow
def test_the_first_command_trains_a_model_that_captions(tmp_path):
    """About five minutes: the default run, at least 98% fully right at 4 or more tokens per iteration."""
    subprocess.run([sys.executable, ROOT / "train.py", "--out", tmp_path / "o", "--device", "cpu"], check=True, stderr=subprocess.DEVNULL)
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    assert result["correct"] >= 0.98 and result["ar_correct"] >= 0.98 and result["count_correct"] >= 0.98
    assert result["response_tokens"] / result["iterations"] >= 4
    assert result["correct"] >= result["correct_without_prefill"] - 0.01
