"""What runs on a GPU, checked without one, on PyTorch's meta device, which has shapes and no
numbers: no tensor is left on another device, and none is in float64, which Apple's GPUs do not
have. And on the CPU: a decoding pass waits for its device once."""
import itertools
from collections import Counter

import pytest
import torch
from conftest import EOS, MASK, decoded, random_inputs, random_model, refused_by, small_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data import Batches, Split, toy
from lab.__main__ import main
from lab.checkpoint import SHIPPED, load
from lab.evaluate import Floor, Scenes, now
from lab.results import where
from lab.shell import DEVICE, pick_device
from lab.trace import Record
from lab.training import autocast, low_precision, make_optimizers
from lab.variants import variant_loss
from mini_dimple import (Step, ar_loss, confident, diffusion_loss, full, prefilled, put_back,
                         response_ends)
from rules import resolve
from tokenizer import Tokenizer

CPU, META, MPS = map(torch.device, ("cpu", "meta", "mps"))


class OneDevice(TorchDispatchMode):
    """Refuses an operation on tensors of several devices, as CUDA does; meta kernels let some pass.
    Numbers (0-dim) may mix. And, as MPS does, one in float64."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        tensors = [x for x in tree_leaves((arguments, options)) if isinstance(x, torch.Tensor)]
        devices = {x.device for x in tensors if x.dim()}
        if len(devices) > 1 and function.name() != "aten::copy_":
            raise RuntimeError(f"{function.name()}: tensors of more than one device")
        answer = function(*arguments, **(options or {}))
        if any(x.dtype == torch.double and x.device == META
               for x in tree_leaves(answer) if isinstance(x, torch.Tensor)):
            raise RuntimeError(f"{function.name()}: float64 on the device")
        return answer


@pytest.fixture
def model():
    return random_model(0).float().to(META)


@pytest.fixture
def batches():
    images, _, _ = random_inputs(0, 8, 5)
    tokenizer = Tokenizer([])
    # the test model's vocabulary is smaller than the bytes
    tokenizer.eos_id, tokenizer.mask_id = EOS, MASK
    tokenizer.encode = lambda text: [ord(c) % EOS for c in text]
    split = Split(images, ["abc"] * 8, ["abcde"[:1 + i % 5] for i in range(8)])
    return Batches(split, tokenizer, small_config(), 4, 0, META)


LOSSES = {"ar": ar_loss, "diffusion": diffusion_loss} | {
    name: lambda *inputs, name=name: variant_loss(*inputs, None, [name])
    for name in ("flat", "example", "complementary")}


@pytest.mark.parametrize("name", LOSSES)
def test_training_stays_on_its_device(model, batches, name, monkeypatch):
    real = torch.optim.AdamW
    # fused AdamW has no meta kernel
    plain = lambda parameters, fused, **options: real(parameters, **options)
    monkeypatch.setattr(torch.optim, "AdamW", plain)
    optimizers = make_optimizers(model, 0.01, 0.01)
    with OneDevice():
        for step in (0, 1, 2):  # over the end of an epoch
            batch = batches(step, "ar" if name == "ar" else "diffusion")
            LOSSES[name](model, *batch).backward()
            assert all(p.grad is not None and p.grad.device == META for p in model.parameters())
            for optimizer, _ in optimizers:
                optimizer.step()
                optimizer.zero_grad()


@pytest.mark.parametrize("make", [full, prefilled])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_decoding_pass_stays_on_its_device(model, batches, make, temperature):
    """The parts of `decode`; its loop asks whether all are finished, for which it needs numbers."""
    images, prompt, tokens = batches(0, "diffusion")
    given = tokens == EOS
    with OneDevice(), torch.no_grad():
        look, state = make(model, images, prompt), None
        for iteration in (0, 1):  # prefilled, the second goes by what the first kept
            logits, state = look(tokens, state)
            step = Step(iteration, 9, tokens, given, logits, None, MASK, EOS, {}, temperature)
            masked, unfinished = tokens == MASK, (tokens == MASK).any(1)
            answers = confident(0.9)(step), resolve("confident:0.9")(step), masked
            for answer in map(step.commit, answers):
                for new in (answer, torch.cat([answer, answer], 1)):
                    after, fixed = put_back(new, tokens, given, unfinished, EOS)
                    record = Record.of(step, tokens, after)
                    ends = response_ends(after, fixed, EOS)
                    found = [x for x in record if isinstance(x, torch.Tensor)]
                    assert {x.device for x in (after, fixed, ends, *found)} == {META}
                    assert after.shape == new.shape


@pytest.mark.parametrize("which", ["images", "prompt", "response"])
def test_a_tensor_left_on_the_cpu_is_found(model, batches, which):
    """By the two tests above, which so can fail."""
    inputs = dict(zip(("images", "prompt", "response"), batches(0, "diffusion")))
    inputs[which] = torch.zeros(inputs[which].shape, dtype=inputs[which].dtype)
    with OneDevice(), pytest.raises(RuntimeError, match="tensors of more than one device"):
        model(*inputs.values(), causal=False)


def test_float64_on_the_device_is_found(model, batches, monkeypatch):
    real = torch.Tensor.flatten
    monkeypatch.setattr(torch.Tensor, "flatten", lambda x, *dims: real(
        x.double() if x.is_floating_point() else x, *dims))
    with OneDevice(), pytest.raises(RuntimeError, match="float64 on the device"):
        ar_loss(model, *batches(0, "ar"))


# ---------------------------------------------------------------- Apple's GPUs, without one

@pytest.mark.parametrize("order", toy.ORDERS)
def test_where_there_is_no_float64_the_exact_posterior_is_the_cpus(order):
    """Tensors cannot be on MPS here: what is asked is on the CPU, and so must all the rest be."""
    model, tokenizer, _ = load(SHIPPED)
    scenes = Scenes(model.config, tokenizer, 4, CPU, toy.TOYS["tiny"]._replace(order=order))
    tokens = torch.where(torch.rand(4, 48, generator=torch.Generator().manual_seed(0)) < 0.5,
                         scenes.responses, model.config.mask_id)
    wanted = scenes.exact()(torch.arange(4))(tokens)[0]
    scenes.images = scenes.images.to(META)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.exact.NO_FLOAT64", ("meta",))
        assert torch.equal(scenes.exact()(torch.arange(4))(tokens)[0], wanted)


def test_the_loss_above_the_floor_is_summed_without_float64_on_the_device(monkeypatch):
    model, tokenizer, _ = load(SHIPPED)
    floor = Floor(toy.TOYS["tiny"], model.config, tokenizer, CPU, n=20)
    for owner, names in ((floor, ("noisy", "masked", "responses", "least")),
                         (floor.scenes, ("images", "prompts"))):
        for name in names:
            setattr(owner, name, getattr(owner, name).to(META))
    floor.rows = [rows.to(META) for rows in floor.rows]
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: torch.ones(x.shape, dtype=x.dtype))
    with OneDevice():
        assert floor(model.to(META))["all"] == 1


@pytest.mark.parametrize("cuda, mps", [*itertools.product([False, True], repeat=2)])
def test_a_device_is_taken_if_it_is_there(cuda, mps, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    there = {"cpu": True, "cuda": cuda, "mps": mps}
    assert {"auto", *there} == set(DEVICE["choices"])
    assert pick_device("auto").type == ("cuda" if cuda else "cpu"), "mps only if asked for"
    for name, found in there.items():
        if found:
            assert pick_device(name).type == name
        else:
            with pytest.raises(ValueError, match=f"--device {name}: this PyTorch sees no"):
                pick_device(name)


def test_what_mps_is_told(monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append("cuda"))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    assert now(MPS) <= now(CPU) and waited == ["mps"]
    assert low_precision(MPS) == torch.float32 and not autocast(MPS)._enabled
    assert "mps" in where(MPS) and "mps" not in where(CPU)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert "profiler" in refused_by(main)(capsys, "speed", "training", "--device", "mps")


class Waits(TorchDispatchMode):
    """Counts what makes the CPU wait for a GPU: numbers read out of a tensor, and shapes that
    depend on its values."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.name()
        indices = arguments[1] if name == "aten::index.Tensor" else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if by_mask or name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"):
            self.counts[name] += 1
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("look", [prefilled, full])
@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("rule", [confident(1.0), confident(0.4)])
def test_a_pass_waits_once(look, temperature, rule, monkeypatch):
    """Whether all are finished is asked before each pass and after the last; before the loop, the
    ids of the window are looked at. An example that finishes costs nothing. (`rescore` asks once
    more in each pass, but on the CPU alone, where nobody waits.)"""
    model, (images, prompt, _) = random_model(0), random_inputs(0, 4, 9)
    window = torch.full((4, 9), MASK)
    window[1, 3:] = window[2, 5:] = 7
    waits, read = Waits(), torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist",
                        lambda x: waits.counts.update(["tolist"]) or read(x))
    with waits:
        out = decoded(model, images, prompt, window, rule, look, temperature=temperature)
    assert len(out.passes.unique()) > 1, "they finish at different times"
    passes = out.passes.max().item()
    assert waits.counts == {"tolist": passes + 1, "aten::_local_scalar_dense": 1 + passes}


def test_waits_are_found():
    with Waits() as waits:
        x = torch.arange(4)
        x[x > 2], x.nonzero(), x.sum().item(), bool(x.any())
    assert waits.counts == {"aten::index.Tensor": 1, "aten::nonzero": 1,
                            "aten::_local_scalar_dense": 2}
