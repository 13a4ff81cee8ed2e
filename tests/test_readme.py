"""What the README says can be done can be done; the training it promises reaches what it promises."""
import inspect
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bench
import data
import mini_dimple
import rules
import sample
import train
from data import toy

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_every_command_names_a_script_and_options_that_exist():
    text = "\n".join(blocks("sh")) + "\n".join(re.findall(r"`(python [^`]+)`", README))
    commands = re.findall(r"python (\w+)\.py([^`&\n]*)", text)
    assert len(commands) >= 5
    for path in re.findall(r"pytest (exercises/[\w/.]+)", README):
        assert (ROOT / path).exists(), path
    for script, words in commands:
        module = {"train": train, "sample": sample, "bench": bench}[script]
        words = shlex.split(words, comments=True)
        module.parse(words)  # ends the test if it does not understand them
    for name, module in (("train", train), ("sample", sample)):
        table = re.search(rf"\| `{name}\.py` \|.*?\n\n", README, re.S)[0]
        known = set(module.parse([])[0]._option_string_actions)
        first_cells = [line.split(" | ")[0] for line in table.splitlines()]
        named = set(re.findall(r"--\w[\w-]*", " ".join(first_cells)))
        assert named and named <= known


SOURCES = {"mini_dimple.py": mini_dimple, "train.py": train, "sample.py": sample, "bench.py": bench, "data/__init__.py": data, "rules/__init__.py": rules}
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def find(name):
    """A dotted name of any source, or an argument of one of their functions -> the object, or True."""
    first, *rest = name.split(".")
    for module in SOURCES.values():
        value = getattr(module, first, None)
        for part in rest:
            value = getattr(value, part, None) or part in getattr(value, "__annotations__", {}) or None
        if value is not None:
            return value


def test_the_guide_names_what_is_there_line_by_line():
    guide = README.split("| paper | read |")[1].split("\n\n")[0]
    links = re.findall(r"\[`([\w.]+)`\]\(([\w/.]+)#L(\d+)-L(\d+)\)", guide)
    rows = guide.strip().splitlines()[2:]
    assert len(rows) >= 12 and all(re.search(r"\]\(.*\? \| `python ", row) for row in rows), "each row has lines, a question and a command"
    for name, path, start, end in links:
        value = SOURCES[path]
        for part in name.split("."):
            value = getattr(value, part)
        lines, first = inspect.getsourcelines(inspect.unwrap(value))
        assert (first, first + len(lines) - 1) == (int(start), int(end)), f"{name} is at L{first}-L{first + len(lines) - 1}"
    assert len(links) >= 18


def test_links_lead_somewhere():
    for doc in DOCS:
        text = doc.read_text()
        headings = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in text.splitlines() if line.startswith("#")}
        for path, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", text):
            assert (doc.parent / path).exists(), path
            assert path or anchor in headings, anchor


def test_every_name_in_the_neighbours_exists():
    text = (ROOT / "docs" / "neighbours.md").read_text()
    spans = set(re.findall(r"`([^`]+)`", text))
    options = set(train.parse([])[0]._option_string_actions)
    functions = [value for value in vars(mini_dimple).values() if inspect.isfunction(value)]
    arguments = {argument for value in functions for argument in inspect.signature(value).parameters}
    known = arguments | {"past"} | set(mini_dimple.Config.__annotations__)
    for span in spans:
        name = re.match(r"[\w.]+", span)
        if flags := re.findall(r"--[\w-]+", span):
            assert set(flags) <= options, span
        elif "/" in span or span.endswith(".py"):
            assert (ROOT / span).exists(), span
        elif span.startswith("step."):
            assert re.search(rf"\b{name[0][5:]}\b", mini_dimple.Step.__doc__) or hasattr(mini_dimple.Step, name[0][5:]), span
        else:
            assert find(name[0]) is not None or name[0] in known or hasattr(data, name[0]), span
            assert set(re.findall(r"(\w+)=", span)) <= arguments, span
    assert len(spans) > 20


def test_the_python_in_the_readme_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    *rules, own_look, notebook = blocks("python")
    names = {}
    exec(notebook, names)
    assert "tensor([" in capsys.readouterr().out
    outs = []
    for rule in rules:
        exec(rule, names)
        look = mini_dimple.prefilled(names["model"], names["image"], names["prompt"])
        outs.append(mini_dimple.decode(look, torch.full((1, 48), names["tokenizer"].mask_id), names["model"].config, names["rule"]))
        assert not outs[-1].left.any() and toy.parse(names["tokenizer"].decode(outs[-1].response(0)), toy.TOYS["tiny"]), rule
    exec(own_look, names)
    warmer = names["look"](names["model"], names["image"], names["prompt"])
    out = mini_dimple.decode(warmer, torch.full((1, 48), names["tokenizer"].mask_id), names["model"].config)
    assert toy.parse(names["tokenizer"].decode(out.response(0)), toy.TOYS["tiny"])
    assert len(rules) == 4 and torch.equal(outs[0].tokens, names["out"].tokens), "the first rule in the README is confident decoding"
    assert outs[3].passes > outs[3].iterations, "the last one looks twice"


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
