"""Checkpoint files: what is saved is loaded; what does not fit is refused with the file's name."""
import pytest
import torch
from conftest import untrained

from data import DESCRIBE
from lab.checkpoint import load, save, write
from lab.variants import PrefixMasked
from mini_dimple import Dimple
from tokenizer import Tokenizer

MODEL, TOKENIZER = untrained(["a red circle at the top left", DESCRIBE])
ORIGIN = dict(phase="diffusion", trained_on="tiny", prompt=DESCRIBE, prefix_mask=False, steps=3)


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "c.pt", MODEL, TOKENIZER, ORIGIN)
    return tmp_path / "c.pt"


@pytest.mark.parametrize("kind", [Dimple, PrefixMasked])
def test_what_is_saved_is_loaded(path, kind):
    saved = kind(MODEL.config)
    origin = {**ORIGIN, "prefix_mask": kind is PrefixMasked, "figures": {"correct": 0.5}}
    save(path, saved, TOKENIZER, origin)
    found = load(path)
    assert type(found.model) is kind and found.model.config == MODEL.config
    assert not found.model.training and saved.training
    assert found.tokenizer.merges == TOKENIZER.merges and found.origin == origin
    weights = found.model.state_dict()
    assert weights.keys() == saved.state_dict().keys()
    assert all(torch.equal(weights[name], w) for name, w in saved.state_dict().items())
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("content", [b"", b"half", [1, 2], {"format": Tokenizer}], ids=str)
def test_damaged_and_foreign_files(path, content):
    """Code in a file is not run."""
    if content == b"half":
        content = path.read_bytes()[:path.stat().st_size // 2]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=f"{path}: damaged"):
        load(path)


def spoilt(weights):
    weights = {name: weight.clone() for name, weight in weights.items()}
    weights["blocks.0.qkv.weight"][3, 5] = torch.nan
    return weights


@pytest.mark.parametrize("part, change, named", [
    ("format", lambda _: "mini-dimple checkpoint 1", "checkpoint 1"),
    ("merges", lambda merges: merges[:-1], "vocab_size"),
    ("config", lambda config: {**config, "mask_id": config["mask_id"] - 1}, "mask_id"),
    ("config", lambda config: {**config, "experts": 8}, "experts"),
    ("config", lambda config: {**config, "layers": 2}, "blocks.1"),
    ("weights", lambda weights: {**weights, "gate": torch.ones(2)}, "gate"),
    ("weights", lambda weights: {**weights, "norm.weight": torch.ones(31)}, "norm.weight"),
    ("weights", spoilt, "finite"),
])
def test_what_does_not_fit_is_named(path, part, change, named):
    state = torch.load(path, weights_only=True)
    torch.save({**state, part: change(state[part])}, path)
    with pytest.raises(ValueError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ") and named in str(error.value)


def test_a_mistake_in_the_model_is_not_the_files(path, monkeypatch):
    def broken(*words):
        raise TypeError("my mistake")
    monkeypatch.setattr(Dimple, "__init__", broken)
    with pytest.raises(TypeError, match="my mistake"):
        load(path)


def test_a_file_is_written_whole_or_not_at_all(path):
    """Whatever fails, what was there before stays as it was, and nothing lies beside it."""
    before = path.read_bytes()

    def failing(file):
        file.write(b"half")
        raise RuntimeError
    with pytest.raises(RuntimeError):
        write(path, failing)
    (path.parent / "c.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left.*c.pt'"):
        write(path, lambda file: file.write(b"more than nothing"))
    assert path.read_bytes() == before and [*path.parent.iterdir()] == [path]
