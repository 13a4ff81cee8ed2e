"""What README and docs say can be done can be done; what they quote was measured; the house keeps
its shape; the training that README promises reaches what it promises."""
import ast
import importlib
import json
import re
import shlex
import subprocess
import sys

import pytest
import torch

import exercises.__main__
import lab.__main__
import mini_dimple
import sample
import train
from data import toy
from lab import claims
from lab.checkpoint import ROOT

DOCS = [ROOT / "README.md", ROOT / "weights" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in DOCS}
README, GUIDE = TEXTS["README.md"], TEXTS["docs/guide.md"]
PARSERS = {"train.py": train, "sample.py": sample, "-m lab": lab.__main__,
           "-m exercises": exercises.__main__}


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def prose(text):
    """Without its blocks of code."""
    return re.sub(r"```.*?```", "", text, flags=re.S)


def commands(text):
    """Every command that begins with `python`, of code spans and shell blocks: one a line."""
    spans = re.findall(r"`(?:[A-Z_]+=\S+ )*(python3? [^`]+)`", prose(text))
    lines = "\n".join(blocks(text, "sh")).replace(" && ", "\n").splitlines()
    for line in "\n".join(blocks(text, "powershell")).replace("; ", "\n").splitlines():
        lines.append(line.removeprefix(".venv\\Scripts\\"))
    return [" ".join(line.split()) for line in [*spans, *lines] if line.startswith("python")]


# ---------------------------------------------------------------- README and docs

@pytest.mark.parametrize("name", TEXTS)
def test_every_command_names_what_exists(name):
    for command in commands(TEXTS[name]):
        script, words = re.match(r"python3? (-m \w+|-|[\w/]+\.py)(.*)", command).groups()
        words = shlex.split(words, comments=True)
        if script in PARSERS:
            if words != ["--help"]:
                PARSERS[script].parse(words)  # ends the test if it does not understand them
        elif script == "-m pytest":
            for path in (word for word in words if word.startswith(("tests/", "exercises/"))):
                assert list(ROOT.glob(path)), command
        else:
            # out/: a file that the page itself has its reader write
            assert script in ("-m venv", "-") or script.startswith("out/"), command
    assert name != "README.md" or len(commands(README)) >= 9


def test_links_lead_somewhere():
    anchors = {}
    for name, text in TEXTS.items():
        heads = re.findall(r"^#+ (.*)$", prose(text), re.M)
        anchors[(ROOT / name).resolve()] = {
            re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
    for doc in [*DOCS, ROOT / "docs" / "tour.ipynb"]:
        for path, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", doc.read_text()):
            target = (doc.parent / path).resolve() if path else doc.resolve()
            assert target.exists(), f"{doc.name}: {path}"
            assert not anchor or anchor in anchors[target], f"{doc.name}: {path}#{anchor}"


def test_the_docs_name_what_is_there():
    links = re.findall(r"\[`([\w.]+)`\]\((?:\.\./)?([\w/.]+)\.py\)", "".join(TEXTS.values()))
    assert len(links) >= 18
    for name, path in links:
        if f"{path}.py".endswith((name, f"{name}.py")):
            continue  # the file as a whole
        value = importlib.import_module(path.replace("/", ".").removesuffix(".__init__"))
        for part in name.split("."):
            value = getattr(value, part)


def test_every_name_in_the_neighbours_exists():
    known = "".join(f"{path}\n{path.read_text('utf-8')}" for path in python_files()
                    if path.parent.name != "tests")
    spans = re.findall(r"`([^`]+)`", TEXTS["docs/neighbours.md"])
    for name in re.findall(r"[A-Za-z_]\w+", " ".join(spans)):
        assert re.search(rf"\b{name}\b", known), name
    assert len(spans) > 20


def test_the_readme_quotes_what_was_measured():
    """Every figure of its tables stands in docs/results.md, and rows of the board as they are."""
    measured = TEXTS["docs/results.md"]
    rows = [line for line in README.splitlines() if line.startswith("|")]
    assert len(rows) >= 12
    for row in rows:
        for figure in re.findall(r"[+-]?\d+\.\d+%?|\d+%", row):
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", measured), (figure, row)
        if row.startswith("| `"):
            assert row in measured.splitlines(), row


def test_what_the_lab_writes_has_its_place():
    text = TEXTS["docs/results.md"]
    parts = ["rules", "worlds", "speed decode", "speed decode compiled", "speed training",
             *(f"claims {name}" for name in claims.CLAIMS)]
    for part in parts:
        inside, = re.findall(rf"<!-- {part} -->\n(.*?)<!-- end of {part} -->", text, re.S)
        assert "\n| " in inside, part
        assert re.match(r"\n`[^`]+`: \d{4}-\d\d-\d\d|\n`bench.py", inside), part


def test_the_python_of_readme_and_guide_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    *own, own_look, notebook, perfect = blocks(GUIDE, "python")
    names = {}
    exec(notebook, names)
    model, image, prompt, tokenizer = (
        names[name] for name in ("model", "image", "prompt", "tokenizer"))

    def caption(look, rule):
        window = torch.full((1, 48), tokenizer.mask_id)
        out = mini_dimple.decode(look(model, image, prompt), window, model.config, rule)
        assert toy.parse(tokenizer.decode(out.response(0)), toy.TOYS["tiny"])
        assert not out.left.any()
        return out
    outs = []
    for rule in blocks(README, "python") + own:
        exec(rule, names)
        outs.append(caption(mini_dimple.prefilled, names["rule"]))
    exec(own_look, names)
    caption(names["look"], mini_dimple.confident(0.9))
    assert torch.equal(outs[0].tokens, names["out"].tokens), "the first is confident decoding"
    assert outs[-1].passes > outs[-1].iterations, "the last one looks twice"
    exec(perfect, names)
    for b, scene in enumerate(names["split"].scenes):
        text = tokenizer.decode(names["out"].response(b))
        assert toy.mistake(text, scene, names["board"]) is None


def test_the_options_of_the_guide_are_options():
    for name, module in (("train", train), ("sample", sample)):
        table = re.search(rf"\| `{name}\.py` \|.*?\n\n", GUIDE, re.S)[0]
        known = set(module.parse([])[0]._option_string_actions)
        first_cells = [line.split(" | ")[0] for line in table.splitlines()]
        named = set(re.findall(r"--\w[\w-]*", " ".join(first_cells)))
        assert named and named <= known


def test_the_example_folder_is_a_data_folder_of_held_out_scenes():
    folder = ROOT / "data" / "examples"
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    for line in lines:
        assert (folder / line["file_name"]).exists()
        assert toy.is_held_out(toy.parse(line["text"], toy.TOYS["tiny"]))


# ---------------------------------------------------------------- the house

# README's drawing, from left to right: each imports from those before it, or its own folder. The
# lab has two rooms: what train.py and sample.py need, and what measures them.
DRAWING = re.search(r"^tokenizer\.py .*<-.*$", README, re.M)[0]
LEVELS = [re.findall(r"\w+", names.replace(".py", "")) for names in DRAWING.split("<-")]


def python_files():
    """The repository's own: a mine.py that README has its reader write is not among them."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True,
                            text=True).stdout.splitlines()
    found = listed or [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py")
                       if ".venv" not in path.parts]
    return [ROOT / name for name in found if name.endswith(".py") and (ROOT / name).exists()]


def imported(path):
    """The modules that a file imports, wherever in it, dotted."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_arrows_point_one_way():
    """What train.py and sample.py import, directly or not, imports nothing that measures them."""
    first = {name: i for i, names in [*enumerate(LEVELS)][::-1] for name in names}
    last = {name: i for i, names in enumerate(LEVELS) for name in names}
    modules = {}  # dotted name -> what of ours it imports
    for path in python_files():
        own = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        room = own.split(".")[0]
        if room == "tests":
            continue
        found = {name for name in imported(path) if name.split(".")[0] in first}
        modules[own.removesuffix(".__init__")] = found
        for name in found:
            other = name.split(".")[0]
            assert first[other] < last[room] or other == room, f"{own} imports {name}"
    assert {name.split(".")[0] for name in modules} == set(first)
    measuring = {"train", "sample"}  # and all that imports them, directly or not
    for _ in modules:
        measuring |= {name for name, found in modules.items() if found & measuring}
    assert {name.split(".")[0] for name in measuring} <= {"train", "sample", "lab", "exercises"}
    assert not (modules["train"] | modules["sample"]) & measuring


@pytest.mark.slow
def test_the_first_command_trains_a_model_that_captions(tmp_path):
    """About four minutes: the default run, at least 97% fully right, greedy and sampled, in the
    perfect model's iterations."""
    out = tmp_path / "o"
    subprocess.run([sys.executable, ROOT / "train.py", "--out", out, "--device", "cpu"],
                   check=True, stderr=subprocess.DEVNULL)
    result = json.loads((out / "result.json").read_text())
    for name in ("correct", "correct_at_temperature_1", "ar_correct", "count_correct"):
        assert result[name] >= 0.97
    for ours, perfect in result["iterations_by_objects_and_exact"].values():
        assert ours == pytest.approx(perfect, rel=0.05)
    assert result["correct"] >= result["correct_without_prefill"] - 0.01
    assert result["nats_above_floor"]["all"] < 0.02
