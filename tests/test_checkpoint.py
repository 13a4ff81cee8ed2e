"""Checkpoint files: what is saved is loaded, from any folder; what does not fit is refused with how
it does not."""
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch
from conftest import decoded

from data import DESCRIBE, toy
from lab.checkpoint import FORMAT, ROOT, SHIPPED, load, save
from lab.evaluate import Scenes
from lab.variants import PrefixMasked
from mini_dimple import Config, Dimple
from tokenizer import MAX_BYTES, Tokenizer

ORIGIN = dict(phase="diffusion", trained_on="tiny", prompt=DESCRIBE, prefix_mask=False, steps=3)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["a red circle at the top left"] * 3 + [DESCRIBE] * 2)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = Config(tokenizer.vocab_size, tokenizer.eos_id, tokenizer.mask_id, width=32,
                    vit_width=32, layers=1)
    return Dimple(config).eval()


@pytest.fixture
def path(tmp_path, model, tokenizer):
    save(tmp_path / "c.pt", model, tokenizer, ORIGIN)
    return tmp_path / "c.pt"


@pytest.fixture
def refused(path):
    """-> refused(part=...): the error of the file with these parts instead of its own."""
    def load_with(**parts):
        state = torch.load(path, weights_only=True)
        torch.save({**state, **parts}, path)
        with pytest.raises(ValueError) as error:
            load(path)
        torch.save(state, path)
        message = str(error.value)
        assert message.startswith(f"{path}: ") and "\n" not in message
        return message.removeprefix(f"{path}: ")
    return load_with


# ---------------------------------------------------------------- there and back

@pytest.mark.parametrize("kind", [Dimple, PrefixMasked])
def test_what_is_saved_is_loaded(tmp_path, model, tokenizer, kind):
    saved = kind(model.config)
    origin = {**ORIGIN, "prefix_mask": kind is PrefixMasked, "figures": {"correct": 0.5}}
    save(tmp_path / "c.pt", saved, tokenizer, origin)
    found = load(tmp_path / "c.pt")
    assert type(found.model) is kind and found.model.config == model.config
    assert not found.model.training and saved.training
    assert found.tokenizer.merges == tokenizer.merges and found.origin == origin
    weights = found.model.state_dict()
    assert weights.keys() == saved.state_dict().keys()
    assert all(torch.equal(weights[name], w) for name, w in saved.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.",
                                    "_orig_mod.module."])
def test_names_of_a_compiled_or_a_distributed_model(path, model, prefix):
    state = torch.load(path, weights_only=True)
    weights = {prefix + name: weight for name, weight in state["weights"].items()}
    torch.save({**state, "weights": weights}, path)
    found = load(path).model.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_a_compiled_model_is_saved_as_itself(tmp_path, model, tokenizer):
    save(tmp_path / "c.pt", torch.compile(model), tokenizer, ORIGIN)
    found = load(tmp_path / "c.pt").model.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())


HIS_SCRIPT = """
import sys
import torch
{first}
sys.path.append({root!r})
from lab.checkpoint import SHIPPED, load
from mini_dimple import confident, decode, prefilled

model, words, origin = load(SHIPPED)
images = torch.load("images.pt")
prompt = torch.tensor([words.encode(origin["prompt"])])
window = torch.full((1, model.config.window), words.mask_id)
out = decode(prefilled(model, images, prompt), window, model.config, confident(0.9))
print(words.decode(out.response(0)))
import tokenizer, rules, data
print(tokenizer.MINE, rules.MINE, data.MINE)
"""


@pytest.mark.parametrize("first", ["", "import tokenizer, rules, data"])
def test_it_loads_beside_a_readers_own_modules(tmp_path, first):
    """In a folder of his, with this repository's behind it on the path."""
    for name in ("tokenizer", "rules", "data"):
        (tmp_path / f"{name}.py").write_text(f"MINE = '{name}'\n")
    (tmp_path / "mine.py").write_text(HIS_SCRIPT.format(first=first, root=str(ROOT)))
    model, words, _ = load(SHIPPED)
    scenes = Scenes(model.config, words, 1, torch.device("cpu"))
    torch.save(scenes.images, tmp_path / "images.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, env=environment,
                          capture_output=True, text=True)
    wanted = words.decode(decoded(model, *scenes[:1]).response(0))
    assert toy.parse(wanted, toy.TOYS["tiny"])
    assert done.stdout == f"{wanted}\ntokenizer rules data\n", done.stderr


# ---------------------------------------------------------------- what does not fit

def damaged(path):
    """name -> content of a file, bytes or what is given to torch.save."""
    whole, state = path.read_bytes(), torch.load(path, weights_only=True)
    pairs = list(state.items())
    yield from {"empty": b"", "text": b"hello", "half": whole[:len(whole) // 2], "a list": [1, 2],
                "a tensor": torch.ones(2), "pairs without a format": pairs[1:],
                "foreign": {"model": torch.ones(2)}, "code": {**state, "format": Tokenizer},
                "no format": dict(pairs[1:])}.items()


def test_damaged_and_foreign_files(path):
    for name, content in damaged(path):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(ValueError) as error:
            load(path)
        assert str(error.value) == f"{path}: damaged, or not written by Mini-Dimple", name


def test_files_that_cannot_be_read(tmp_path):
    for path, kind in ((tmp_path / "none.pt", FileNotFoundError), (tmp_path, IsADirectoryError)):
        with pytest.raises(kind, match=str(path)):
            load(path)


@pytest.mark.parametrize("found", ["mini-dimple checkpoint 1", 2, None])
def test_another_format_is_named(refused, found):
    assert refused(format=found) == f"its format is {found!r}; this code reads {FORMAT!r}"


@pytest.mark.parametrize("part", ["merges", "config", "origin", "weights"])
@pytest.mark.parametrize("value", [None, 5, "text", torch.ones(2)])
def test_parts_of_another_kind(refused, part, value):
    assert refused(**{part: value}).startswith(f"{part}: expected a ")


@pytest.mark.parametrize("name, value, message", [
    *((name, value, f"{name} is {value!r}; expected a whole number from ") for name, value in (
        ("window", "48"), ("window", 0), ("window", -1), ("window", 4097), ("window", 48.0),
        ("window", True), ("window", None), ("window", [48]), ("window", 10 ** 30),
        ("image_px", 0), ("patch_px", 0), ("vit_width", 0), ("vit_layers", 1001),
        ("width", 10 ** 9), ("layers", 0), ("layers", True), ("heads", 0), ("heads", 4.0),
        ("prompt_tokens", 0), ("eos_id", -1), ("mask_id", "300"), ("vocab_size", 10 ** 9))),
    ("heads", 3, "3 heads do not divide width, 32"),
    ("vit_width", 30, "4 heads do not divide vit_width, 30"),
    ("heads", 32, "width 32 over 32 heads is odd"),
    ("image_px", 40, "image_px is 40; 2 x 2 patches of 8 px (patch_px) do not fill that"),
    ("patch_px", 7, "image_px is 48; 2 x 2 patches of 7 px"),
    ("image_px", 4096, "picture, prompt and window have 65587 positions; at most 4096"),
    ("window", 4085, "picture, prompt and window have 4097 positions"),
])
def test_a_config_that_cannot_be(refused, model, name, value, message):
    config = {**asdict(model.config), name: value}
    assert refused(config=config).startswith(f"config: {message}")


@pytest.mark.parametrize("name", ["vocab_size", "eos_id", "mask_id"])
def test_ids_are_the_tokenizers(refused, model, tokenizer, name):
    own, merges = asdict(model.config), tokenizer.merges
    wrong = own[name] + 1
    message = f"config: {name} is {wrong}; its tokenizer's is {own[name]}"
    assert refused(config={**own, name: wrong}) == message
    message = f"config: vocab_size is {own['vocab_size']}; its tokenizer's is "
    assert refused(merges=merges[:-1]) == f"{message}{own['vocab_size'] - 1}"


def test_fields_that_are_missing_or_unknown(refused, model):
    config = asdict(model.config)
    config["experts"], config[8] = 8, 8
    assert refused(config=config) == "config: unknown 8, experts"
    del config["window"], config["layers"]
    assert refused(config=config) == "config: missing layers, window; unknown 8, experts"
    del config["experts"], config[8]
    assert refused(config=config) == "config: missing layers, window", "even where it has a default"


@pytest.mark.parametrize("changes", [dict(width=2 ** 16), dict(vit_width=2 ** 16),
                                     dict(width=2 ** 16, vit_width=2 ** 16)])
def test_a_huge_config_takes_no_memory(refused, model, changes):
    """It would be 50 GB and more."""
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refused(config={**asdict(model.config), **changes})
    assert "where its config makes (" in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kb < 100_000


@pytest.mark.parametrize("change, message", [
    (lambda w: w.pop("norm.weight"), "norm.weight is missing"),
    (lambda w: w.update(gate=torch.ones(2)), "gate is not a weight of it"),
    (lambda w: w.update({7: torch.ones(2)}), "7 is not a weight of it"),
    (lambda w: w.update({"norm.weight": torch.ones(31)}),
     "norm.weight is (31,), where its config makes (32,)"),
    (lambda w: w.update({"head.weight": w["head.weight"].T}),
     "head.weight is (32, {0}), where its config makes ({0}, 32)"),
    (lambda w: w.update({"norm.weight": torch.ones(32).long()}),
     "norm.weight is no tensor of real numbers"),
    (lambda w: w.update({"norm.weight": [1.0] * 32}), "norm.weight is no tensor of real numbers"),
    (lambda w: [w.pop(f"{name}.weight") for name in ("norm", "head", "embedding")],
     "embedding.weight is missing; head.weight is missing; norm.weight is missing"),
    (lambda w: w.clear(), "blocks.0.attention_norm.weight is missing; "
     "blocks.0.down.weight is missing; blocks.0.gate_up.weight is missing, and 17 more"),
])
def test_weights_that_do_not_fit_are_named(refused, model, change, message):
    weights = dict(model.state_dict())
    change(weights)
    said = message.format(model.config.vocab_size)
    assert refused(weights=weights) == f"the weights do not fit this code's model: {said}"


def test_tensors_that_hold_no_numbers(refused, model):
    for change in (torch.Tensor.to_sparse, lambda weight: weight.to("meta")):
        weights = {name: change(weight) for name, weight in model.state_dict().items()}
        assert "copy" in refused(weights=weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(refused, model, value):
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    weights["blocks.0.qkv.weight"][3, 5] = value
    assert refused(weights=weights).startswith("damaged weights: blocks.0.qkv.weight holds")


@pytest.mark.parametrize("merges, message", [
    ([[1, 99999]], "merge 0: expected two ids from 0 to 255"),
    ([[1, 2], [1, 2]], "merge 1: expected a pair not given before"),
    ([7], "merge 0: expected two ids"), ([torch.tensor([1, 2])], "merge 0: expected two ids"),
    # each joins the last token with itself: 2^60 bytes
    ([(97, 97), *((256 + i, 256 + i) for i in range(59))],
     f"merge {MAX_BYTES.bit_length() - 1}: expected a token of at most"),
])
def test_merges_that_cannot_be(refused, merges, message):
    start = time.perf_counter()
    assert refused(merges=merges).startswith(message)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("name, value, wanted", [
    ("phase", None, "'ar' or 'diffusion'"), ("phase", "dual", "'ar' or 'diffusion'"),
    ("phase", 2, "'ar' or 'diffusion'"), ("phase", "", "'ar' or 'diffusion'"),
    ("trained_on", None, "a text"), ("trained_on", 5, "a text"), ("prompt", None, "a text"),
    ("prompt", ["describe"], "a text"), ("prefix_mask", "no", "True or False"),
])
def test_an_origin_that_does_not_say(refused, name, value, wanted):
    message = f"origin: {name} is {value!r}; expected {wanted}"
    assert refused(origin={**ORIGIN, name: value}) == message
    if value is None:
        assert refused(origin={k: v for k, v in ORIGIN.items() if k != name}) == message
