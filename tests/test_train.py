"""train.py as its users run it: overfitting, resuming bit for bit, refusing what would lose work, every file it writes."""
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import decoded, refused_by
from PIL import Image

import train
from data import Batches, folder, pad_prompts, toy
from mini_dimple import (Config, Dimple, ar_loss, confident, decode_ar, diffusion_loss, full, load,
                         prefilled, schedule)
from tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
CAPTIONS = ["a red thing", "something green, and more", "the blue one", "yellow", "grey as rain", "a purple picture of nothing"]


def make_folder(path):
    """Six pictures of mixed sizes and modes, one with an EXIF rotation, and their captions; two instructions."""
    path.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = [(Image.new("RGB", (64, 48), "red"), "0.png", {}), (Image.new("RGBA", (30, 90), (0, 160, 0, 200)), "1.png", {}),
                (Image.new("RGB", (50, 50), "blue").convert("P"), "2.gif", {}), (Image.new("RGB", (200, 10), "yellow").convert("CMYK"), "3.jpg", {}),
                (Image.new("L", (48, 48), 120), "4.png", {}), (Image.new("RGB", (70, 50), "purple"), "5.jpg", {"exif": exif})]
    lines = []
    for (image, name, options), text in zip(pictures, CAPTIONS):
        image.save(path / name, **options)
        lines.append({"file_name": name, "text": text})
    lines.append({"file_name": "0.png", "text": "red", "prompt": "which colour is this picture?"})
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures") / "d")


def run(*words, status=0, **options):
    """`python train.py ...` -> (stdout, stderr)."""
    done = subprocess.run([sys.executable, ROOT / "train.py", *map(str, words)], capture_output=True, text=True, **options)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def losses(out):
    """step -> (phase, loss as written), from log.csv."""
    with open(out / "log.csv", newline="") as file:
        return {int(row["step"]): (row["phase"], row["loss"], row["learning_rate"]) for row in csv.DictReader(file)}


refused = refused_by(train.main)


def test_a_handful_of_scenes_is_overfitted_through_both_phases():
    """The whole method in one loop: AR phase, greedy decoding right; diffusion phase, confident decoding right."""
    torch.manual_seed(0)
    split = toy.examples(toy.TOYS["tiny"], 6, 0, held_out=False, instruction=toy.DESCRIBE)
    tokenizer = Tokenizer.train(split.texts + split.prompts)
    config = Config(tokenizer.vocab_size, tokenizer.eos_id, tokenizer.mask_id, prompt_tokens=len(tokenizer.encode(toy.DESCRIBE)),
                    width=64, vit_width=64, layers=2, vit_layers=1)
    model = Dimple(config)
    batches = Batches(split, tokenizer, config, 6, 0, "cpu")
    optimizers = train.make_optimizers(model, 0.02, 1e-2)
    prompts = pad_prompts(split.prompts, tokenizer, config.prompt_tokens)
    ar_steps, diffusion_steps = 80, 240
    for step in range(ar_steps + diffusion_steps):
        if step == ar_steps:
            out = decode_ar(model, split.images, prompts, config.window)
            assert [tokenizer.decode(out.response(b)) for b in range(6)] == split.texts
        phase, factor = schedule(step, ar_steps, diffusion_steps)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        loss = ar_loss(model, *batches(step, phase)) if phase == "ar" else diffusion_loss(
            model, *batches(step, phase), generator=torch.Generator().manual_seed(step))
        loss.backward()
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    window = torch.full((6, config.window), config.mask_id)
    for look in (prefilled, full):
        out = decoded(model, split.images, prompts, window, confident(0.9), look)
        assert [tokenizer.decode(out.response(b)) for b in range(6)] == split.texts
        assert out.passes.float().mean() < 16, "many tokens per pass"


@pytest.mark.slow
def test_your_own_pictures_are_overfitted_to_exact_captions(pictures, tmp_path):
    out = tmp_path / "out"
    run("--data", pictures, "--out", out, "--holdout", 0, "--ar-steps", 80, "--diffusion-steps", 240, "--seed", 1)
    result = json.loads((out / "result.json").read_text())
    assert result["exact_match"] == 1 and result["ar_exact_match"] == 1 and result["loss"] < 0.5
    model, tokenizer = load(out / "mini_dimple.pt")
    assert model.config.phase == "diffusion" and load(out / "ar_phase.pt")[0].config.phase == "ar"
    config = model.config
    for line in map(json.loads, (pictures / "metadata.jsonl").read_text().splitlines()):
        image = folder.load_image(pictures / line["file_name"], config.image_px)[None]
        prompt = pad_prompts([line.get("prompt", toy.DESCRIBE)], tokenizer, config.prompt_tokens)
        window = torch.full((1, config.window), config.mask_id)
        assert tokenizer.decode(decoded(model, image, prompt, window).response(0)) == line["text"]
    assert set(os.listdir(out)) == set(train.FILES)
    assert Image.open(out / "samples.png").width > 200
    assert [row[0] for row in losses(out).values()] == ["ar"] * 80 + ["diffusion"] * 240


SHORT = ["--ar-steps", 7, "--diffusion-steps", 16, "--holdout", 0]


@pytest.fixture
def quick(monkeypatch):
    """Checkpoints every 5 steps, few held-out scenes."""
    monkeypatch.setattr(train, "SAVE_EVERY", 5)
    monkeypatch.setattr(train, "HELD_OUT_SCENES", 4)
    monkeypatch.setitem(train.TRAINING["tiny"], "examples", 200)
    monkeypatch.setitem(train.TRAINING["tiny"], "batch_size", 8)


@pytest.mark.parametrize("stop", [4, pytest.param(5, marks=pytest.mark.slow), 9, 12, pytest.param(21, marks=pytest.mark.slow)])
def test_a_run_stopped_anywhere_resumes_to_the_same_losses(pictures, tmp_path, quick, monkeypatch, capsys, stop):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ["--data", pictures, *SHORT]
    train.main([*map(str, flags), "--out", str(whole)])

    calls, real = 0, train.phase_loss
    def stopping(*words):
        nonlocal calls
        if calls == stop:
            raise KeyboardInterrupt
        calls += 1
        return real(*words)
    monkeypatch.setattr(train, "mean_loss", lambda *words: 0.0)  # it calls phase_loss too
    monkeypatch.setattr(train, "phase_loss", stopping)
    with pytest.raises(SystemExit) as end:
        train.main([*map(str, flags), "--out", str(broken)])
    assert "stopped" in capsys.readouterr().err and end.value.code == 130 and not (broken / "result.json").exists()
    monkeypatch.setattr(train, "phase_loss", real)
    if stop < 5:
        assert not (broken / "last.pt").exists()
        assert "--overwrite" in refused(capsys, "--out", broken) and "does not exist" in refused(capsys, "--out", broken, "--resume")
        return
    if stop == 9:
        (broken / "log.csv").unlink()  # the log is a record, not needed to go on
        train.main(["--resume", "--out", str(broken)])
        assert list(losses(broken)) == list(range(7 + 1, 24))
        return
    train.main(["--resume", "--out", str(broken)])
    assert losses(broken) == losses(whole) and len(losses(whole)) == 23
    a, b = (torch.load(out / "mini_dimple.pt", weights_only=True)["weights"] for out in (whole, broken))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert json.loads((broken / "result.json").read_text())["ar_exact_match"] is not None


@pytest.mark.slow
def test_killed_and_resumed(pictures, tmp_path):
    """SIGKILL, as a power cut would: last.pt is whole, and the losses go on as without it."""
    flags = ["--data", str(pictures), "--ar-steps", "30", "--diffusion-steps", "10", "--holdout", "0"]
    code = "import train; train.SAVE_EVERY = 20; train.main()"
    process = subprocess.Popen([sys.executable, "-c", code, *flags, "--out", tmp_path / "k"], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (tmp_path / "k" / "last.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(tmp_path / "k" / "last.pt", weights_only=True)["step"] in (20, 30)
    run("--resume", "--out", tmp_path / "k")
    run(*flags, "--out", tmp_path / "w")
    assert losses(tmp_path / "k") == losses(tmp_path / "w") and len(losses(tmp_path / "w")) == 40


def test_toy_run_writes_every_figure(tmp_path, quick, capsys):
    out = tmp_path / "out"
    train.main(["--out", str(out), "--ar-steps", "3", "--diffusion-steps", "3", "--seed", "5"])
    result = json.loads((out / "result.json").read_text())
    assert {"correct", "well_formed", "count_correct", "iterations", "response_tokens", "ar_correct", "train_seconds", "steps", "device",
            "threads", "recipe", "preset", "seed"} <= set(result)
    assert (result["steps"], result["recipe"], result["preset"], result["seed"]) == (6, "ar-then-diffusion", "tiny", 5)
    assert "samples.png" in capsys.readouterr().out

    before = {name: (out / name).read_bytes() for name in train.FILES}
    assert "--overwrite" in refused(capsys, "--out", out)
    train.main(["--out", str(out), "--resume"])
    assert "finished" in capsys.readouterr().out
    assert "--seed is 6 here, 5 in" in refused(capsys, "--out", out, "--resume", "--seed", 6)
    assert "--preset is small" in refused(capsys, "--out", out, "--resume", "--preset", "small")
    assert "choose one" in refused(capsys, "--out", out, "--resume", "--overwrite")
    assert "metadata.jsonl" in refused(capsys, "--out", out, "--overwrite", "--data", tmp_path)
    assert before == {name: (out / name).read_bytes() for name in train.FILES}, "nothing is lost by a mistake"
    train.main(["--out", str(out), "--overwrite", "--recipe", "ar", "--ar-steps", "2"])
    result = json.loads((out / "result.json").read_text())
    assert result["recipe"] == "ar" and result["correct"] == result["ar_correct"] and load(out / "mini_dimple.pt")[0].config.phase == "ar"


def test_pure_diffusion_and_defaults_of_the_recipes():
    def steps(*words):
        settings = train.settings_from(train.parse(words)[1])
        return settings["ar_steps"], settings["diffusion_steps"]
    ar, diffusion = steps()
    assert steps("--recipe", "diffusion") == (0, ar + diffusion) and steps("--recipe", "ar") == (ar + diffusion, 0)
    assert steps("--ar-steps", "3", "--diffusion-steps", "4") == (3, 4) and steps("--ar-steps", "0") == (0, diffusion)


def test_a_loss_that_is_not_finite_stops_the_run(pictures, tmp_path, quick, monkeypatch, capsys):
    calls, real = 0, train.phase_loss
    def poisoned(*words):
        nonlocal calls
        calls += 1
        return real(*words) * (float("nan") if calls == 13 else 1)
    monkeypatch.setattr(train, "mean_loss", lambda *words: 0.0)
    monkeypatch.setattr(train, "phase_loss", poisoned)
    with pytest.raises(SystemExit) as end:
        train.main([str(w) for w in ("--data", pictures, *SHORT, "--out", tmp_path / "o")])
    err = capsys.readouterr().err
    assert end.value.code == 1 and "the loss is nan at step 13" in err and "last.pt (step 10)" in err and "Traceback" not in err
    state = torch.load(tmp_path / "o" / "last.pt", weights_only=True)
    assert state["step"] == 10 and all(w.isfinite().all() for w in state["weights"].values())
    assert max(losses(tmp_path / "o")) == 12
    monkeypatch.setattr(train, "phase_loss", real)
    train.main(["--resume", "--out", str(tmp_path / "o")])


@pytest.mark.parametrize("words, message", [
    (["--ar-steps", "-1"], "must be 0 or more"), (["--diffusion-steps", "x"], "--diffusion-steps"), (["--seed", "-3"], "must be 0 or more"), (["--seed", "99999999999999"], "below 2^32"),
    (["--ar-steps", "0", "--diffusion-steps", "0"], "nothing to train"), (["--preset", "huge"], "--preset"), (["--recipe", "x"], "--recipe"),
    (["--recipe", "diffusion", "--ar-steps", "5"], "--ar-steps"), (["--recipe", "ar", "--diffusion-steps", "5"], "--diffusion-steps"),
    (["--recipe", "ar", "--weighting", "elbo"], "--weighting"), (["--recipe", "ar", "--prefix-mask"], "--prefix-mask"), (["--padding", "much"], "--padding"),
    (["--holdout", "1"], "below 1"), (["--holdout", "nan"], "below 1"), (["--holdout", "0.5"], "--data"), (["--data", "none"], "none: cannot be read as a folder"),
    (["--resume"], "does not exist"), (["--nonsense"], "--nonsense"), (["--device", "tpu"], "--device"),
])
def test_bad_options(words, message, tmp_path, capsys):
    assert message in refused(capsys, *words, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_cuda_without_cuda(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cuda" in refused(capsys, "--device", "cuda", "--out", tmp_path / "o")


def test_data_that_does_not_fit(tmp_path, capsys):
    path = make_folder(tmp_path / "d")
    with open(path / "metadata.jsonl", "a") as file:
        file.write("\n" + json.dumps({"file_name": "1.png", "text": "".join(map(chr, range(0x4E00, 0x4E40)))}))
    assert "metadata.jsonl:8: the caption is" in refused(capsys, "--data", path, "--holdout", 0, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_a_run_goes_on_with_pictures_that_moved(tmp_path, quick, capsys):
    """What is compared is what options resolve to: not the folder's name, its spelling, or "auto" for the same device."""
    path, out = make_folder(tmp_path / "d"), tmp_path / "o"
    train.main(["--data", str(path), *map(str, SHORT), "--out", str(out), "--device", "cpu"])
    whole = losses(out)
    state = torch.load(out / "last.pt", weights_only=True)
    for name in ("result.json", "samples.png", "mini_dimple.pt"):
        (out / name).unlink()
    torch.save({**state, "results": {"ar": state["results"]["ar"]}}, out / "last.pt")  # as if stopped in the last evaluation
    path.rename(tmp_path / "moved")
    capsys.readouterr()
    assert "say where they are with --data" in refused(capsys, "--out", out, "--resume")
    assert "metadata.jsonl" in refused(capsys, "--out", out, "--resume", "--data", tmp_path)
    changed = make_folder(tmp_path / "changed")
    Image.new("RGB", (64, 48), "green").save(changed / "0.png")
    assert "the data" in refused(capsys, "--out", out, "--resume", "--data", changed)
    train.main(["--resume", "--out", str(out), "--data", f"{tmp_path}/changed/../moved", "--device", "auto" if not torch.cuda.is_available() else "cpu"])
    assert (out / "result.json").exists() and losses(out) == whole
    assert torch.load(out / "last.pt", weights_only=True)["settings"]["data"] == str(tmp_path / "moved")


def test_changed_data_and_damaged_runs_are_not_resumed(pictures, tmp_path, quick, capsys):
    path, out = make_folder(tmp_path / "d"), tmp_path / "o"
    train.main(["--data", str(path), "--out", str(out), *map(str, SHORT)])
    (out / "result.json").unlink()
    lines = (path / "metadata.jsonl").read_text()
    (path / "metadata.jsonl").write_text(lines.replace("a red thing", "a red king"))
    capsys.readouterr()
    assert "is no longer what the run began with" in refused(capsys, "--resume", "--out", out)
    (path / "metadata.jsonl").write_text(lines)
    whole = (out / "last.pt").read_bytes()
    for content in (b"", b"junk", whole[:len(whole) // 2]):
        (out / "last.pt").write_bytes(content)
        assert "last.pt: damaged" in refused(capsys, "--resume", "--out", out)
    torch.save({"format": "other"}, out / "last.pt")
    assert "its format is 'other'" in refused(capsys, "--resume", "--out", out)


def test_out_that_is_a_file(tmp_path, capsys, quick):
    (tmp_path / "o").write_text("mine")
    assert "o" in refused(capsys, "--out", tmp_path / "o", "--ar-steps", 1, "--diffusion-steps", 0)
    assert (tmp_path / "o").read_text() == "mine"


def test_batches_are_a_function_of_the_step_and_windows_vary():
    split = toy.examples(toy.TOYS["tiny"], 100, 0, held_out=False)
    tokenizer = Tokenizer.train(split.texts + split.prompts)
    config = Config(tokenizer.vocab_size, tokenizer.eos_id, tokenizer.mask_id)
    a, b = (Batches(split, tokenizer, config, 16, 0, "cpu") for _ in range(2))
    widths = set()
    for step in range(24):
        images, prompt, response = a(step, "diffusion")
        again = b(23 - step, "diffusion")  # in any order
        if 23 - step == step:
            assert all(torch.equal(x, y) for x, y in zip((images, prompt, response), again))
        assert (response[:, -1] == config.eos_id).any() or response.shape[1] < config.window
        assert ((response == config.eos_id).sum(1) >= 1).all(), "at least one EOS"
        assert response.shape[1] <= config.window
        widths.add(response.shape[1])
        assert a(step, "ar")[2].shape[1] <= response.shape[1]
    assert len(widths) > 3
    first = [b(step, "diffusion") for step in (3, 9)]
    assert all(torch.equal(x, y) for step, batch in zip((3, 9), first) for x, y in zip(a(step, "diffusion"), batch))
    seen = torch.cat([a(step, "ar")[0] for step in range(6)]).flatten(1)
    assert len(seen.unique(dim=0)) == 96, "an epoch shows no picture twice"
    bare = Batches(split, tokenizer, config, 16, 0, "cpu", padding="none")
    for step in range(12):
        _, _, response = bare(step, "diffusion")
        assert ((response == config.eos_id).sum(1) == 1).any() and torch.equal(response, bare(step, "ar")[2]), "no longer than the longest"


def test_options_of_the_diffusion_phase_reach_it(tmp_path, quick, monkeypatch):
    """Each option changes the diffusion phase and leaves the AR phase before it as it was; --complementary keeps the cost of a step."""
    rows, real = [], train.diffusion_loss
    def spy(model, images, *rest):
        rows.append((len(images), *rest[2:4]))
        return real(model, images, *rest)
    monkeypatch.setattr(train, "diffusion_loss", spy)
    found = {}
    for words in ([], ["--weighting", "elbo"], ["--complementary"], ["--padding", "none"], ["--prefix-mask"]):
        out = tmp_path / "-".join(["o", *words])
        train.main(["--out", str(out), "--ar-steps", "2", "--diffusion-steps", "3", "--device", "cpu", *words])
        found["".join(words)] = [row[1] for row in losses(out).values()]
        assert load(out / "mini_dimple.pt")[0].config.prefix_mask == ("--prefix-mask" in words)
    assert len({tuple(values[:2]) for values in found.values()}) == 1 and len({tuple(values[2:]) for values in found.values()}) == 5
    assert set(rows) == {(8, "flat", False), (8, "elbo", False), (4, "flat", True)}


@pytest.mark.slow
def test_preset_small_runs_some_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "HELD_OUT_SCENES", 2)
    monkeypatch.setitem(train.TRAINING["small"], "examples", 300)
    train.main(["--preset", "small", "--ar-steps", "6", "--diffusion-steps", "4", "--out", str(tmp_path / "o"), "--device", "cpu"])
    values = [float(loss) for _, loss, _ in losses(tmp_path / "o").values()]
    assert len(values) == 10 and values[5] < values[0]


@pytest.mark.slow
def test_compile(pictures, tmp_path):
    plain, compiled = tmp_path / "p", tmp_path / "c"
    for out, extra in ((plain, []), (compiled, ["--compile"])):
        run("--data", pictures, *SHORT, "--out", out, "--device", "cpu", *extra)
    a, b = ([float(loss) for _, loss, _ in losses(out).values()] for out in (plain, compiled))
    assert a[:4] == pytest.approx(b[:4], rel=0.005), "the same gradients, too; later steps amplify the rounding"
    assert len(a) == len(b) and b[-1] < b[0]
