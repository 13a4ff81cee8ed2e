"""What runs on a GPU, checked without one, on PyTorch's meta device, which has shapes and no
numbers: no tensor is left on another device."""
import pytest
import torch
from conftest import EOS, MASK, random_inputs, random_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lab.shell import pick_device
from lab.trace import Record
from lab.variants import variant_loss
from mini_dimple import (Step, ar_loss, confident, diffusion_loss, full, prefilled, put_back,
                         response_ends)

META = torch.device("meta")


class OneDevice(TorchDispatchMode):
    """Refuses an operation on tensors of several devices, as CUDA does; meta kernels let some pass.
    Numbers (0-dim) may mix."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        tensors = [x for x in tree_leaves((arguments, options)) if isinstance(x, torch.Tensor)]
        devices = {x.device for x in tensors if x.dim()}
        if len(devices) > 1 and function.name() != "aten::copy_":
            raise RuntimeError(f"{function.name()}: tensors of more than one device")
        return function(*arguments, **(options or {}))


@pytest.fixture
def inputs():
    """A model, images, prompts, responses."""
    return random_model(0).float().to(META), *(x.to(META) for x in random_inputs(0, 4, 5))


LOSSES = {"ar": ar_loss, "diffusion": diffusion_loss} | {
    name: lambda *inputs, name=name: variant_loss(*inputs, None, [name])
    for name in ("flat", "example", "complementary")}


@pytest.mark.parametrize("name", LOSSES)
def test_training_stays_on_its_device(inputs, name):
    with OneDevice():
        LOSSES[name](*inputs).backward()
    assert all(p.grad is not None and p.grad.device == META for p in inputs[0].parameters())


@pytest.mark.parametrize("make", [full, prefilled])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_decoding_pass_stays_on_its_device(inputs, make, temperature):
    """The parts of `decode`; its loop asks whether all are finished, for which it needs numbers."""
    *inputs, tokens = inputs
    given = tokens == EOS
    with OneDevice(), torch.no_grad():
        look, state = make(*inputs), None
        for iteration in (0, 1):  # prefilled, the second goes by what the first kept
            logits, state = look(tokens, state)
            step = Step(iteration, 9, tokens, given, logits, None, MASK, EOS, {}, temperature)
            answer = step.commit(confident(0.9)(step))
            for new in (answer, torch.cat([answer, answer], 1)):
                after, fixed = put_back(new, tokens, given, (tokens == MASK).any(1), EOS)
                record = Record.of(step, tokens, after)
                ends = response_ends(after, fixed, EOS)
                found = [x for x in record if isinstance(x, torch.Tensor)]
                assert {x.device for x in (after, fixed, ends, *found)} == {META}


def test_a_tensor_left_on_the_cpu_is_found(inputs):
    """By the tests above, which so can fail."""
    model, images, *rest = inputs
    with OneDevice(), pytest.raises(RuntimeError, match="tensors of more than one device"):
        model(torch.zeros_like(images, device="cpu"), *rest, causal=False)


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("mps", [False, True])
def test_a_device_is_taken_if_it_is_there(cuda, mps, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    there = {"cpu": True, "cuda": cuda, "mps": mps}
    assert pick_device("auto").type == ("cuda" if cuda else "cpu"), "mps only if asked for"
    for name, found in there.items():
        if found:
            assert pick_device(name).type == name
        else:
            with pytest.raises(ValueError, match=f"--device {name}"):
                pick_device(name)
