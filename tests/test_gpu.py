"""What CUDA changes: run on a GPU where there is one (`.ci/gpu`), else on the CPU, so that the tests themselves are known to work."""
import random

import pytest
import torch
from conftest import MASK, random_inputs, random_model
from test_decode import random_window

import bench
import sample
import train
from data import Batches
from mini_dimple import ar_loss, confident, decode, decode_ar, diffusion_loss, forward_process, load

DEVICE = train.pick_device("auto")
GPU = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")


def on(device, tensors):
    return [tensor.to(device) for tensor in tensors]


def test_losses_and_gradients_are_those_of_the_cpu(seed):
    """In float64; the forward process draws other masks on another device, so here every token is masked."""
    images, prompt, response = random_inputs(seed, 6, 9)
    response[:, 7:] = 18
    found = []
    for device in ("cpu", DEVICE):
        model, batch = random_model(seed).to(device), on(device, (images, prompt, response))
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


@pytest.mark.parametrize("prefill", [True, False])
def test_decoding_is_the_cpus_and_a_batch_decodes_as_each_alone(prefill, seed):
    model, (images, prompt, _) = random_model(seed), random_inputs(seed, 16, 12)
    window = random_window(random.Random(seed), 16, 12)
    wanted = decode(model, images, prompt, window, confident(0.4), prefill)
    model, (images, prompt, window) = model.to(DEVICE), on(DEVICE, (images, prompt, window))
    out = decode(model, images, prompt, window, confident(0.4), prefill)
    assert torch.equal(out.tokens.cpu(), wanted.tokens) and torch.equal(out.iterations.cpu(), wanted.iterations)
    for b in range(16):
        one = slice(b, b + 1)
        assert torch.equal(decode(model, images[one], prompt[one], window[one], confident(0.4), prefill).tokens, out.tokens[one])
    sampled = [decode(model, images, prompt, window, temperature=1.0, generator=torch.Generator(DEVICE).manual_seed(seed)).tokens for _ in "ab"]
    assert torch.equal(*sampled), "the same generator, the same tokens"
    assert torch.equal(decode_ar(model, images, prompt, 12).tokens.cpu(), decode_ar(model.cpu(), *on("cpu", (images, prompt)), 12).tokens)


def test_muon_in_this_devices_precision():
    generator = torch.Generator().manual_seed(0)
    stack = torch.randn(3, 128, 384, generator=generator).to(DEVICE)
    exact, here = (train.orthogonalise(stack, dtype).float() for dtype in (torch.float32, train.low_precision(DEVICE)))
    assert (exact - here).norm() <= 0.02 * exact.norm()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 5)
    monkeypatch.setattr(train, "HELD_OUT_SCENES", 4)
    monkeypatch.setitem(train.TRAINING["tiny"], "examples", 200)


def test_a_run_resumes_and_its_weights_load_on_the_cpu(tmp_path, quick, monkeypatch):
    words = ["--ar-steps", "6", "--diffusion-steps", "8"]
    train.main([*words, "--out", str(tmp_path / "whole")])
    calls, real = [], train.phase_loss

    def stopping(*rest):
        calls.append(rest)
        if len(calls) > 8:
            raise KeyboardInterrupt
        return real(*rest)
    with monkeypatch.context() as changed, pytest.raises(SystemExit):
        changed.setattr(train, "phase_loss", stopping)
        train.main([*words, "--out", str(tmp_path / "o")])
    train.main(["--resume", "--out", str(tmp_path / "o")])
    whole, resumed = ([float(line.split(",")[2]) for line in (tmp_path / name / "log.csv").read_text().splitlines()[1:]] for name in ("whole", "o"))
    assert resumed == pytest.approx(whole, rel=0.02) and len(whole) == 14  # bit for bit only on the CPU
    model, tokenizer = load(tmp_path / "o" / "mini_dimple.pt")
    assert next(model.parameters()).device.type == "cpu" and next(model.parameters()).dtype == torch.float32
    sample.main(["--checkpoint", str(tmp_path / "o" / "mini_dimple.pt"), "--seed", "1", "--length", "4"])


@GPU
def test_a_training_step_never_waits_for_the_gpu(quick):
    settings = train.settings_from(train.parse([])[1])
    split, _, tokenizer, config, _ = train.prepare(settings)
    model = train.Dimple(config).to(DEVICE)
    optimizers, batches = train.make_optimizers(model, 0.01, 0.01), Batches(split, tokenizer, config, 16, 0, DEVICE)
    for step in range(12):
        for phase in ("ar", "diffusion"):
            torch.cuda.set_sync_debug_mode("error" if step % 6 else "default")  # a new epoch may wait
            try:
                batch = batches(step, phase)
                with train.autocast(DEVICE):
                    loss = train.phase_loss(model, batch, phase, torch.Generator(DEVICE))
                loss.backward()
                for optimizer, _ in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            finally:
                torch.cuda.set_sync_debug_mode("default")


@GPU
def test_compiled_decoding_gives_the_same_captions():
    model, tokenizer = load(bench.SHIPPED, DEVICE)
    scenes = bench.Scenes(model, tokenizer, 8, DEVICE)
    plain = [decode(model, *scenes[b:b + 1]).tokens for b in range(8)]
    model.score = bench.compiled(model.score)
    assert sum(torch.equal(decode(model, *scenes[b:b + 1]).tokens, tokens) for b, tokens in enumerate(plain)) >= 7  # near-ties may tip
