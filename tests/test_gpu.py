"""What CUDA changes: run on a GPU where there is one (`.ci/gpu`), else on the CPU, so that the
tests themselves are known to work."""
import math
import warnings

import pytest
import torch
from conftest import (EOS, MASK, VOCAB, decoded, random_case, random_inputs, random_model,
                      small_config)

import sample
import train
from data import Batches, toy
from lab.checkpoint import SHIPPED, load
from lab.evaluate import Floor, Scenes
from lab.shell import pick_device
from lab.speed import compiled
from lab.training import autocast, low_precision, make_optimizers, orthogonalise, prepare
from mini_dimple import (Dimple, ar_loss, confident, decode, decode_ar, diffusion_loss,
                         forward_process, full, prefilled)
from rules import resolve

DEVICE = pick_device("auto")
GPU = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")


def on(device, tensors):
    return [tensor.to(device) for tensor in tensors]


def test_losses_and_gradients_are_those_of_the_cpu():
    """In float64; the forward process draws other masks on another device, so here every token is
    masked."""
    images, prompt, response = random_inputs(0, 6, 9)
    response[:, 7:] = EOS
    found = []
    for device in ("cpu", DEVICE):
        model, batch = random_model(0).to(device), on(device, (images, prompt, response))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mini_dimple.forward_process", lambda response, t, mask_id, generator: (
                torch.full_like(response, mask_id), torch.ones_like(response, dtype=torch.bool)))
            losses = [ar_loss(model, *batch), diffusion_loss(model, *batch)]
        sum(losses).backward()
        found.append([*losses, *(p.grad for p in model.parameters())])
    for cpu, here in zip(*found):
        torch.testing.assert_close(here.cpu(), cpu, rtol=1e-9, atol=1e-12)


def test_the_forward_process_masks_the_share_it_should():
    t = torch.linspace(0.01, 1, 64, device=DEVICE)
    response = torch.zeros(64, 4000, dtype=torch.long, device=DEVICE)
    noisy, masked = forward_process(response, t, MASK, torch.Generator(DEVICE).manual_seed(0))
    assert torch.equal(noisy == MASK, masked) and (masked.float().mean(1) - t).abs().max() < 0.04


@pytest.mark.parametrize("look", [prefilled, full])
@pytest.mark.parametrize("name", ["confident:0.4", "remask:0.3", "maskgit:2"])
def test_decoding_is_the_cpus(look, name):
    case, rule = random_case(0, 16, 12), resolve(name)
    wanted, greedy = decoded(*case, rule, look), decode_ar(*case[:-1], 12)
    model, *inputs, window = case = on(DEVICE, case)
    out = decoded(*case, rule, look)
    for field in ("tokens", "iterations", "passes", "left", "ends"):
        assert torch.equal(getattr(out, field).cpu(), getattr(wanted, field)), field
    for here, there in zip(out.trace, wanted.trace):
        for field in ("tokens", "by_rule", "at_least_one", "by_limit", "taken_back"):
            assert torch.equal(getattr(here, field).cpu(), getattr(there, field)), field
    assert torch.equal(decode_ar(model, *inputs, 12).tokens.cpu(), greedy.tokens)
    again = [decoded(*case, rule, look, temperature=1.0,
                     generator=torch.Generator(DEVICE).manual_seed(0)).tokens for _ in "ab"]
    assert torch.equal(*again), "the same generator, the same tokens"


@pytest.mark.parametrize("limit", [1, 3])
def test_logits_that_are_not_numbers_are_refused(limit):
    """`rescore` does not look at them, to save a wait: the loop does, in its last iteration too."""
    passes = []

    def look(tokens, state):
        passes.append(state)
        value = math.nan if len(passes) == limit else 0.0
        return torch.full((2, 5, VOCAB), value, device=DEVICE), None
    with pytest.raises(ValueError, match="logits"):
        decode(look, torch.full((2, 5), MASK, device=DEVICE), small_config(), limit=limit)
    assert len(passes) == limit


@pytest.mark.parametrize("order", toy.ORDERS)
def test_the_exact_posterior_and_the_loss_above_it_are_the_cpus(order):
    model, tokenizer, _ = load(SHIPPED)
    board, found = toy.TOYS["tiny"]._replace(order=order), []
    for device in (torch.device("cpu"), DEVICE):
        floor = Floor(board, model.config, tokenizer, device, n=40)
        found.append([floor.least.cpu(), torch.tensor([*floor(model.to(device)).values()])])
    for cpu, here in zip(*found):
        torch.testing.assert_close(here, cpu, rtol=1e-4, atol=1e-3)


def test_muon_in_this_devices_precision():
    generator = torch.Generator().manual_seed(0)
    stack = torch.randn(3, 128, 384, generator=generator).to(DEVICE)
    exact = orthogonalise(stack, torch.float32)
    here = orthogonalise(stack, low_precision(DEVICE)).float()
    assert (exact - here).norm() <= 0.02 * exact.norm()


def test_a_run_resumes_and_its_weights_load_on_the_cpu(tmp_path, quick, monkeypatch):
    words = ["--evaluate", "1", "--ar-steps", "6", "--diffusion-steps", "8"]
    steps, real = iter(range(99)), train.schedule

    def stopping(*rest):
        if next(steps) == 8:
            raise KeyboardInterrupt
        return real(*rest)
    train.main([*words, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as changed, pytest.raises(SystemExit):
        changed.setattr(train, "schedule", stopping)
        train.main([*words, "--out", str(tmp_path / "o")])
    train.main(["--resume", "--out", str(tmp_path / "o")])
    logs = [(tmp_path / out / "log.csv").read_text().splitlines()[1:] for out in ("whole", "o")]
    whole, resumed = [[float(line.split(",")[2]) for line in log] for log in logs]
    # bit for bit only on the CPU
    assert len(whole) == 14 and resumed == pytest.approx(whole, rel=0.02)
    path = tmp_path / "o" / "mini_dimple.pt"
    for weight in load(path).model.parameters():
        assert weight.device.type == "cpu" and weight.dtype == torch.float32
    sample.main(["--checkpoint", str(path), "--seed", "1", "--length", "4"])


@GPU
def test_a_training_step_never_waits_for_the_gpu(quick):
    settings, _ = train.settings_from(train.parse([])[1])
    split, _, tokenizer, config, _ = prepare(settings)
    model = Dimple(config).to(DEVICE)
    optimizers = make_optimizers(model, 0.01, 0.01)
    batches = Batches(split, tokenizer, config, 16, 0, DEVICE)
    for step in range(12):
        for phase in ("ar", "diffusion"):
            # a new epoch may wait
            torch.cuda.set_sync_debug_mode("error" if step % 6 else "default")
            try:
                batch = batches(step, phase)
                with autocast(DEVICE):
                    loss = (ar_loss(model, *batch) if phase == "ar" else
                            diffusion_loss(model, *batch, torch.Generator(DEVICE)))
                loss.backward()
                for optimizer, _ in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            finally:
                torch.cuda.set_sync_debug_mode("default")


@GPU
def test_compiled_decoding_gives_the_same_captions_and_compiles_no_more_than_its_shapes():
    model, tokenizer, _ = load(SHIPPED, DEVICE)
    scenes = Scenes(model.config, tokenizer, 8, DEVICE)
    plain = decoded(model, *scenes[0:8])
    assert len(plain.passes.unique()) > 1, "captions finish at different times"
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.logits = compiled(model.logits)
    same = (decoded(model, *scenes[0:8]).tokens == plain.tokens).all(1)
    assert same.sum() >= 7  # near-ties may tip
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@GPU
@pytest.mark.parametrize("look", [prefilled, full])
def test_a_pass_waits_for_the_gpu_once(look):
    """For the ids of the window, before each pass, at the end."""
    model, (images, prompt, _) = random_model(0).to(DEVICE), on(DEVICE, random_inputs(0, 4, 9))
    window = torch.full((4, 9), MASK, device=DEVICE)
    window[1, 3:] = 7
    decoded(model, images, prompt, window, confident(1.0), look)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            out = decoded(model, images, prompt, window, confident(1.0), look)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(wait.message) for wait in waits) == out.passes.max() + 1 + 1
