"""What runs on a GPU, checked without one, on PyTorch's meta device, which has shapes and no numbers: no tensor is left on
another device. And on the CPU: a decoding pass does not wait for its device more than it must."""
from collections import Counter

import pytest
import torch
from conftest import MASK, random_inputs, random_model, small_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from data import Batches, Split
from mini_dimple import Step, confident, decode, propose, response_ends, select
from tokenizer import Tokenizer

META = torch.device("meta")


class OneDevice(TorchDispatchMode):
    """Refuses an operation on tensors of several devices, as CUDA does; meta kernels let some pass. Numbers (0-dim) may mix."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        tensors = [x for x in tree_leaves((arguments, options)) if isinstance(x, torch.Tensor) and x.dim()]
        if len({x.device for x in tensors}) > 1 and function.name() != "aten::copy_":
            raise RuntimeError(f"{function.name()}: tensors of more than one device")
        return function(*arguments, **(options or {}))


@pytest.fixture
def model():
    return random_model(0).float().to(META)


@pytest.fixture
def batches():
    images, _, _ = random_inputs(0, 8, 5)
    tokenizer = Tokenizer([])
    tokenizer.eos_id, tokenizer.mask_id = 18, MASK  # the test model's vocabulary is smaller than the bytes
    tokenizer.encode = lambda text: [ord(c) % 18 for c in text]
    return Batches(Split(images, ["abc"] * 8, ["abcde"[:1 + i % 5] for i in range(8)]), tokenizer, small_config(), 4, 0, META)


@pytest.mark.parametrize("phase", ["ar", "diffusion"])
@pytest.mark.parametrize("complementary", [False, True])
def test_training_stays_on_its_device(model, batches, phase, complementary, monkeypatch):
    plain = lambda parameters, fused, **options: real(parameters, **options)  # fused AdamW has no meta kernel
    real = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", plain)
    optimizers = train.make_optimizers(model, 0.01, 0.01)
    with OneDevice():
        for step in (0, 1, 2):  # over the end of an epoch
            for weighting in train.WEIGHTINGS:
                train.phase_loss(model, batches(step, phase), phase, None, weighting, complementary).backward()
            assert all(p.grad is not None and p.grad.device == META for p in model.parameters())
            for optimizer, _ in optimizers:
                optimizer.step()
                optimizer.zero_grad()


def test_a_scoring_pass_stays_on_its_device(model, batches):
    images, prompt, response = batches(0, "diffusion")
    masked, given = response == MASK, response != MASK
    with OneDevice(), torch.no_grad():
        prefix = model.prefix(images, prompt)
        _, cache = model.score(prefix, response, False)
        past = [(k[:, :, :prefix.shape[1] - 1], v[:, :, :prefix.shape[1] - 1]) for k, v in cache]
        for prefix, past in ((prefix, None), (prefix[:, -1:], past)):
            for temperature in (0, 1.0):
                logits, _ = model.score(prefix, response, False, past)
                proposal, confidence, probs = propose(logits, MASK, temperature)
                commit, take_back = select(confident(0.9), Step(0, response, masked, given, proposal, confidence, probs), given)
                ends = response_ends(torch.where(commit, proposal, response), given, 18)
                assert {x.device for x in (commit, take_back, ends, confidence)} == {META}


@pytest.mark.parametrize("which", ["images", "prompt", "response"])
def test_a_tensor_left_on_the_cpu_is_found(model, batches, which):
    """That the two tests above can fail: one input of another device is refused."""
    inputs = dict(zip(("images", "prompt", "response"), batches(0, "diffusion")))
    inputs[which] = torch.zeros(inputs[which].shape, dtype=inputs[which].dtype)
    for phase in ("ar", "diffusion"):
        with OneDevice(), pytest.raises(RuntimeError, match="device"):
            train.phase_loss(model, tuple(inputs.values()), phase, None).backward()


class Waits(TorchDispatchMode):
    """Counts what makes the CPU wait for a GPU: numbers read out of a tensor, and shapes that depend on its values."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.name()
        by_mask = name == "aten::index.Tensor" and any(i is not None and i.dtype == torch.bool for i in arguments[1])
        if by_mask or name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"):
            self.counts[name] += 1
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("prefill", [True, False])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_pass_waits_once_while_no_example_is_finished(prefill, temperature):
    """The question whether all are finished is the one look at the device; a finished example costs more, as it leaves."""
    model, (images, prompt, _) = random_model(0), random_inputs(0, 4, 9)
    window = torch.full((4, 9), MASK)
    with Waits() as waits:
        out = decode(model, images, prompt, window, confident(1.0), prefill, temperature)
    assert out.iterations.tolist() == [9] * 4  # one token a pass: all rows finish together, in the tenth look
    assert waits.counts["aten::_local_scalar_dense"] == 10, dict(waits.counts)
    assert sum(waits.counts.values()) <= 10 + 2 * model.config.layers + 2, "rows that leave, once"
