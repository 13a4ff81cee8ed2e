"""train.py as its users run it: overfitting, resuming bit for bit, refusing what would lose work,
every file it writes."""
import csv
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import decoded, refused_by
from PIL import Image

import lab.run
import train
from data import Batches, folder, pad_prompts, toy
from lab.checkpoint import ROOT, load, save
from lab.evaluate import Floor
from lab.run import FILES
from lab.training import make_optimizers
from lab.variants import VARIANTS, PrefixMasked
from mini_dimple import (Config, Dimple, ar_loss, confident, decode_ar, diffusion_loss, full,
                         prefilled, schedule)
from tokenizer import Tokenizer

CAPTIONS = ["a red thing", "something green, and more", "the blue one", "yellow", "grey as rain",
            "a purple picture of nothing"]


def make_folder(path):
    """Six pictures of mixed sizes and modes, one with an EXIF rotation, and their captions; two
    instructions."""
    path.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = {
        "0.png": Image.new("RGB", (64, 48), "red"),
        "1.png": Image.new("RGBA", (30, 90), (0, 160, 0, 200)),
        "2.gif": Image.new("RGB", (50, 50), "blue").convert("P"),
        "3.jpg": Image.new("RGB", (200, 10), "yellow").convert("CMYK"),
        "4.png": Image.new("L", (48, 48), 120),
        "5.jpg": Image.new("RGB", (70, 50), "purple"),
    }
    lines = []
    for (name, image), text in zip(pictures.items(), CAPTIONS):
        image.save(path / name, **({"exif": exif} if name == "5.jpg" else {}))
        lines.append({"file_name": name, "text": text})
    question = "which colour is this picture?"
    lines.append({"file_name": "0.png", "text": "red", "prompt": question})
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("pictures") / "d")


def run(*words, status=0, **options):
    """`python train.py ...` -> (stdout, stderr)."""
    command = [sys.executable, ROOT / "train.py", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


TIMES = {"step", "images_per_s", "seconds"}  # and what the rows are by


def losses(out):
    """step -> phase, loss, learning rate, nats above the floor (all and by share masked), as
    written, from log.csv."""
    with open(out / "log.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    found = {int(row["step"]): tuple(row[name] for name in row if name not in TIMES)
             for row in rows}
    assert len(found) == len(rows), "each step once"
    return found


def same_weights(a, b):
    """Of two checkpoints."""
    a, b = (torch.load(path, weights_only=True)["weights"] for path in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def start(*words):
    train.main([str(word) for word in words])


refused = refused_by(train.main)


@pytest.mark.slow
def test_a_handful_of_scenes_is_overfitted_through_both_phases():
    """The whole method in one loop: AR phase, greedy decoding right; diffusion phase, confident
    decoding right."""
    torch.manual_seed(0)
    split = toy.examples(toy.TOYS["tiny"], 6, 0, held_out=False, instruction=toy.DESCRIBE)
    tokenizer = Tokenizer.train(split.texts + split.prompts)
    config = Config(tokenizer.vocab_size, tokenizer.eos_id, tokenizer.mask_id, width=64,
                    vit_width=64, layers=2, vit_layers=1,
                    prompt_tokens=len(tokenizer.encode(toy.DESCRIBE)))
    model = Dimple(config)
    batches = Batches(split, tokenizer, config, 6, 0, "cpu")
    optimizers = make_optimizers(model, 0.02, 1e-2)
    prompts = pad_prompts(split.prompts, tokenizer, config.prompt_tokens)
    ar_steps, diffusion_steps = 80, 240
    for step in range(ar_steps + diffusion_steps):
        if step == ar_steps:
            out = decode_ar(model, split.images, prompts, config.window)
            assert [tokenizer.decode(out.response(b)) for b in range(6)] == split.texts
        phase, at, steps = (("ar", step, ar_steps) if step < ar_steps else
                            ("diffusion", step - ar_steps, diffusion_steps))
        factor = schedule(at, steps)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        generator = torch.Generator().manual_seed(step)
        batch = batches(step, phase)
        loss = (ar_loss(model, *batch) if phase == "ar" else
                diffusion_loss(model, *batch, generator))
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
    run("--data", pictures, "--out", out, "--holdout", 0, "--ar-steps", 80,
        "--diffusion-steps", 240, "--seed", 1)
    result = json.loads((out / "result.json").read_text())
    assert result["exact_match"] == 1 and result["ar_exact_match"] == 1 and result["loss"] < 0.5
    model, tokenizer, origin = load(out / "mini_dimple.pt")
    assert origin["phase"] == "diffusion" and load(out / "ar_phase.pt").origin["phase"] == "ar"
    config = model.config
    for line in map(json.loads, (pictures / "metadata.jsonl").read_text().splitlines()):
        image = folder.load_image(pictures / line["file_name"], config.image_px)[None]
        prompt = pad_prompts([line.get("prompt", toy.DESCRIBE)], tokenizer, config.prompt_tokens)
        window = torch.full((1, config.window), config.mask_id)
        assert tokenizer.decode(decoded(model, image, prompt, window).response(0)) == line["text"]
    assert set(os.listdir(out)) == set(FILES)
    assert Image.open(out / "samples.png").width > 200
    assert [row[0] for row in losses(out).values()] == ["ar"] * 80 + ["diffusion"] * 240


SHORT = ["--ar-steps", 7, "--diffusion-steps", 16, "--holdout", 0]
FEW = ["--examples", 200, "--evaluate", 4]  # of the toy set


def hurry(patch):
    """Small batches; every 10 steps the loss above its floor."""
    patch.setitem(train.PRESETS["tiny"], "batch_size", 8)
    patch.setattr(lab.run, "FLOOR_EVERY", 10)


@pytest.fixture
def quick(monkeypatch):
    """`hurry`, and checkpoints every 5 steps."""
    hurry(monkeypatch)
    monkeypatch.setattr(lab.run, "SAVE_EVERY", 5)


@pytest.fixture
def stopped(monkeypatch, capsys):
    """-> stopped(steps, *words): train.main on these words, ended without a warning after so many
    steps, as by kill -9."""
    def run(steps, *words):
        calls, real = [], train.schedule

        def stopping(*rest):
            if len(calls) == steps:
                raise KeyboardInterrupt
            calls.append(rest)
            return real(*rest)
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr(train, "schedule", stopping)
            start(*words)
        assert "stopped" in capsys.readouterr().err and end.value.code == 130
    return run


@pytest.fixture(scope="module")
def uninterrupted(pictures, tmp_path_factory):
    """A whole run on the pictures, in small batches."""
    out = tmp_path_factory.mktemp("uninterrupted") / "o"
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        start("--data", pictures, *SHORT, "--out", out)
    return out


@pytest.mark.parametrize("stop", [4, pytest.param(5, marks=pytest.mark.slow), 9, 12,
                                  pytest.param(21, marks=pytest.mark.slow)])
def test_a_run_stopped_anywhere_resumes_to_the_same_losses(
        pictures, uninterrupted, tmp_path, quick, stopped, capsys, stop):
    broken = tmp_path / "broken"
    stopped(stop, "--data", pictures, *SHORT, "--out", broken)
    assert not (broken / "result.json").exists()
    if stop < 5:
        assert not (broken / "last.pt").exists()
        assert "--overwrite" in refused(capsys, "--out", broken)
        assert "last.pt" in refused(capsys, "--out", broken, "--resume")
        return
    if stop == 9:
        (broken / "log.csv").unlink()  # the log is a record, not needed to go on
        start("--resume", "--out", broken)
        assert list(losses(broken)) == list(range(7 + 1, 24))
        return
    start("--resume", "--out", broken)
    assert losses(broken) == losses(uninterrupted) and len(losses(broken)) == 23
    assert same_weights(uninterrupted / "mini_dimple.pt", broken / "mini_dimple.pt")
    assert json.loads((broken / "result.json").read_text())["ar_exact_match"] is not None


KILLED = """import os, signal, lab.run, train
lab.run.SAVE_EVERY, lab.run.LOG_EVERY = 5, 2
train.PRESETS["tiny"]["batch_size"] = 8
real, steps = train.schedule, iter(range(99))
def killing(*rest):
    if next(steps) == {step}:
        os.kill(os.getpid(), signal.{name})
    return real(*rest)
train.schedule = killing
train.main()"""


@pytest.mark.parametrize("name, step, saved", [
    ("SIGTERM", 5, 6), ("SIGINT", 12, 13), ("SIGKILL", 12, 10), *(pytest.param(
        *one, marks=pytest.mark.slow) for one in (
            ("SIGTERM", 12, 13), ("SIGINT", 5, 6), ("SIGKILL", 5, 5), ("SIGTERM", 6, 7)))])
def test_killed_in_either_phase_and_resumed(pictures, uninterrupted, tmp_path, quick, name, step,
                                            saved):
    """Ctrl-C and SIGTERM finish the step, save and say how to go on; a power cut loses the steps
    since last.pt was written. Each is resumed to the same log."""
    out = tmp_path / "o"
    words = [sys.executable, "-c", KILLED.format(name=name, step=step), "--data", pictures, *SHORT,
             "--out", out]
    done = subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True)
    code = getattr(signal, name)
    assert done.returncode == (-code if name == "SIGKILL" else 128 + code), done.stderr
    if name != "SIGKILL":
        assert done.stderr.endswith(f"last.pt (step {saved}); python train.py --resume --out {out} "
                                    "goes on from it\n") and "Traceback" not in done.stderr
    assert torch.load(out / "last.pt", weights_only=True)["step"] == saved
    start("--resume", "--out", out)
    assert losses(out) == losses(uninterrupted)
    assert same_weights(uninterrupted / "mini_dimple.pt", out / "mini_dimple.pt")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_stopped_in_an_evaluation(pictures, uninterrupted, tmp_path, quick, monkeypatch, capsys,
                                  name):
    """At once: all steps are saved. The evaluation is made again."""
    code, out = getattr(signal, name), tmp_path / "o"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(train, "evaluate", lambda *rest: os.kill(os.getpid(), code))
        start("--data", pictures, *SHORT, "--out", out)
    assert end.value.code == 128 + code and "last.pt (step 7)" in capsys.readouterr().err
    start("--resume", "--out", out)
    assert losses(out) == losses(uninterrupted)
    found = [json.loads((path / "result.json").read_text()) for path in (out, uninterrupted)]
    assert found[0]["ar_exact_match"] == found[1]["ar_exact_match"]


def test_resuming_ignores_other_options(pictures, uninterrupted, tmp_path, quick, stopped):
    stopped(12, "--data", pictures, *SHORT, "--out", tmp_path / "o")
    start("--resume", "--out", tmp_path / "o", "--seed", 6, "--preset", "small", "--ar-steps", 1,
          "--variant", "flat")
    assert losses(tmp_path / "o") == losses(uninterrupted)


def test_toy_run_writes_every_figure(tmp_path, quick, capsys):
    out = tmp_path / "out"
    start("--out", out, *FEW, "--ar-steps", 3, "--diffusion-steps", 12, "--seed", 5)
    result = json.loads((out / "result.json").read_text())
    assert {"correct", "count_correct", "iterations", "response_tokens", "ar_correct",
            "correct_at_temperature_1", "correct_without_prefill", "train_seconds", "steps",
            "device", "threads", "preset", "seed"} <= set(result)
    said = dict(steps=15, preset="tiny", seed=5, variant=[], evaluated=4)
    assert said.items() <= result.items()
    shares = result["mistakes"]  # the first thing wrong with each caption
    assert set(shares) <= set(toy.MISTAKES) and sum(shares.values()) + result["correct"] == 1
    scenes = toy.examples(toy.TOYS["tiny"], 4, 0, held_out=True, instruction=toy.DESCRIBE).scenes
    objects = {str(len(scene)) for scene in scenes}
    assert set(result["correct_by_objects"]) == objects
    assert set(result["iterations_by_objects_and_exact"]) == objects
    for mine, exact in result["iterations_by_objects_and_exact"].values():
        assert mine >= 1 and 2 <= exact <= 48
    assert "samples.png" in capsys.readouterr().out

    floor = {step: row[3:] for step, row in losses(out).items() if any(row[3:])}
    assert list(floor) == [10, 15], "every 10 steps of diffusion, and after the last"
    nats = [*map(float, floor[15])]
    assert list(result["nats_above_floor"]) == ["all", *Floor.PARTS]
    assert nats == pytest.approx([*result["nats_above_floor"].values()], abs=1e-5)
    assert nats[0] > 0.5 and nats[0] < float(floor[10][0])

    before = {name: (out / name).read_bytes() for name in FILES}
    assert "holds a file of this name: mini_dimple.pt; --resume" in refused(capsys, "--out", out)
    start("--out", out, "--resume")
    assert "finished" in capsys.readouterr().out
    for words, message in ((["--data", tmp_path], "metadata.jsonl"), (["--data", out], "of --data"),
                           (["--ar-phase", out / "ar_phase.pt"], "holds the --ar-phase"),
                           (["--examples", 5], "too few"),
                           (["--variant", "flat", "example"], "choose one")):
        assert message in refused(capsys, "--out", out, "--overwrite", *words)
    after = {name: (out / name).read_bytes() for name in FILES}
    assert before == after, "nothing is lost by a mistake"
    start("--out", out, *FEW, "--overwrite", "--ar-steps", 2, "--diffusion-steps", 0)
    result = json.loads((out / "result.json").read_text())
    assert result["steps"] == 2 and result["correct"] == result["ar_correct"]
    assert not {"nats_above_floor", "correct_at_temperature_1"} & set(result), "of diffusion"
    assert load(out / "mini_dimple.pt").origin["phase"] == "ar"


def test_what_the_captions_leave_open_goes_with_the_weights(tmp_path, quick, capsys):
    """Into the checkpoints, by which captions are graded."""
    out = tmp_path / "o"
    words = ["--out", out, *FEW, "--ar-steps", 1, "--diffusion-steps", 1, "--wording", "three",
             "--order", "free"]
    start(*words)
    for name in ("ar_phase.pt", "mini_dimple.pt"):
        board = toy.of(load(out / name).origin)
        assert board == toy.TOYS["tiny"]._replace(wording="three", order="free")


def test_what_a_preset_decides_unless_an_option_does():
    def found(*words):
        settings, state = train.settings_from(train.parse(words)[1])
        assert state is None
        return [settings[name] for name in ("ar_steps", "diffusion_steps", "examples")]
    assert found() == [400, 800, 20_000]
    assert found("--preset", "small") == [2000, 6000, 40_000]
    assert found("--preset", "small", "--ar-steps", "0", "--examples", "9") == [0, 6000, 9]
    usual, _ = train.settings_from(train.parse([])[1])
    assert (usual["wording"], usual["order"], usual["variant"]) == ("two", "reading", [])


def test_a_loss_that_is_not_finite_stops_the_run(pictures, tmp_path, quick, monkeypatch, capsys):
    calls, real = 0, train.diffusion_loss

    def poisoned(*words):
        nonlocal calls
        calls += 1
        return real(*words) * (float("nan") if calls == 13 - 7 else 1)
    monkeypatch.setattr(train, "diffusion_loss", poisoned)
    with pytest.raises(SystemExit) as end:
        start("--data", pictures, *SHORT, "--out", tmp_path / "o")
    err = capsys.readouterr().err
    assert end.value.code == 1 and "Traceback" not in err
    assert "the loss is nan at step 13" in err and "last.pt (step 10)" in err
    state = torch.load(tmp_path / "o" / "last.pt", weights_only=True)
    assert state["step"] == 10
    assert all(weight.isfinite().all() for weight in state["weights"].values())
    assert max(losses(tmp_path / "o")) == 12
    monkeypatch.setattr(train, "diffusion_loss", real)
    start("--resume", "--out", tmp_path / "o")


@pytest.mark.parametrize("words, message", [
    (["--ar-steps", "-1"], "must be 0 or more"), (["--diffusion-steps", "x"], "--diffusion-steps"),
    (["--seed", "-3"], "must be 0 or more"), (["--seed", "99999999999999"], "below 2^32"),
    (["--ar-steps", "0", "--diffusion-steps", "0"], "nothing to train"),
    (["--preset", "huge"], "--preset"), (["--variant", "elbo"], "--variant"),
    (["--variant", "flat", "example"], "choose one"),
    (["--holdout", "1"], "below 1"), (["--holdout", "nan"], "below 1"),
    (["--data", "none"], "none: cannot be read as a folder"), (["--examples", "0"], "--examples"),
    (["--evaluate", "-1"], "--evaluate"), (["--keep", "0"], "--keep"),
    (["--wording", "four"], "--wording"), (["--order", "random"], "--order"),
    (["--preset", "small", "--order", "free"], "--order free is for the preset tiny"),
    (["--resume"], "last.pt"), (["--nonsense"], "--nonsense"), (["--device", "tpu"], "--device"),
])
def test_bad_options(words, message, tmp_path, capsys):
    assert message in refused(capsys, *words, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_cuda_without_cuda(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cuda" in refused(capsys, "--device", "cuda", "--out", tmp_path / "o")


def test_data_that_does_not_fit(tmp_path, capsys):
    path = make_folder(tmp_path / "d")
    text = "".join(map(chr, range(0x4E00, 0x4E40)))
    with open(path / "metadata.jsonl", "a") as file:
        file.write("\n" + json.dumps({"file_name": "1.png", "text": text}))
    err = refused(capsys, "--data", path, "--holdout", 0, "--out", tmp_path / "o")
    assert "metadata.jsonl:8: the caption is" in err
    assert not (tmp_path / "o").exists()


def test_changed_data_and_damaged_runs_are_not_resumed(pictures, tmp_path, quick, capsys):
    path, out = make_folder(tmp_path / "d"), tmp_path / "o"
    start("--data", path, "--out", out, *SHORT)
    (out / "result.json").unlink()
    lines = (path / "metadata.jsonl").read_text()
    (path / "metadata.jsonl").write_text(lines.replace("a red thing", "a red king"))
    capsys.readouterr()
    assert "are no longer what the run began with" in refused(capsys, "--resume", "--out", out)
    (path / "metadata.jsonl").write_text(lines)
    whole = (out / "last.pt").read_bytes()
    for content in (b"", b"junk", whole[:len(whole) // 2]):
        (out / "last.pt").write_bytes(content)
        assert "last.pt: damaged" in refused(capsys, "--resume", "--out", out)
    torch.save({"format": "other"}, out / "last.pt")
    assert "its format is 'other'" in refused(capsys, "--resume", "--out", out)


def test_out_that_is_a_file(tmp_path, capsys, quick):
    (tmp_path / "o").write_text("mine")
    assert "is a file" in refused(capsys, "--out", tmp_path / "o")
    assert (tmp_path / "o").read_text() == "mine"


def test_every_prompt_ends_at_the_same_position():
    class Words:
        eos_id = 9
        encode = staticmethod(lambda text: [int(letter) for letter in text])
    assert pad_prompts(["1", "234"], Words, 4).tolist() == [[9, 9, 9, 1], [9, 2, 3, 4]]


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
    for step in (3, 9):
        batch, again = a(step, "diffusion"), b(step, "diffusion")
        assert all(torch.equal(x, y) for x, y in zip(batch, again))
    epochs = [torch.cat([a(step, "ar")[0] for step in range(start, start + 6)]).flatten(1)
              for start in (0, 6)]
    assert all(len(seen.unique(dim=0)) == 96 for seen in epochs), "an epoch shows no picture twice"
    assert not torch.equal(*epochs), "each in an order of its own"
    widths = {a(step, "diffusion")[2].shape[1] for step in range(100)}
    assert max(widths) == config.window, "the longest is drawn, too"
    bare = Batches(split, tokenizer, config, 16, 0, "cpu", padding="none")
    for step in range(12):
        _, _, response = bare(step, "diffusion")
        assert ((response == config.eos_id).sum(1) == 1).any(), "no longer than the longest"
        assert torch.equal(response, bare(step, "ar")[2])


@pytest.mark.slow
def test_variants_reach_the_diffusion_phase(tmp_path, quick):
    """Each changes the diffusion phase, and leaves the AR phase before it as it was."""
    found = {}
    for variants in ([], *([name] for name in VARIANTS), ["flat", "complementary"]):
        out = tmp_path / "-".join(["o", *variants])
        start("--out", out, *FEW, "--evaluate", 0, "--ar-steps", 2, "--diffusion-steps", 3,
              "--device", "cpu", *(["--variant", *variants] if variants else []))
        found["-".join(variants)] = [row[1] for row in losses(out).values()]
        model, _, origin = load(out / "mini_dimple.pt")
        assert origin["prefix_mask"] == isinstance(model, PrefixMasked) == (
            "prefix-mask" in variants)
        assert origin["variant"] == variants
    assert len({tuple(values[:2]) for values in found.values()}) == 1
    assert len({tuple(values[2:]) for values in found.values()}) == len(found) == 7


# ---------------------------------------------------------------- errors

def test_an_error_in_the_model_or_in_decoding_keeps_its_traceback(tmp_path, quick, monkeypatch):
    """Also the kinds of error that are one line where options and files make them; what was trained
    is safe, and once the error is mended the run goes on."""
    def broken(*rest, **options):
        raise ValueError("my mistake")
    words = ["--out", tmp_path / "o", *FEW, "--ar-steps", 2, "--diffusion-steps", 2]
    with monkeypatch.context() as patch:
        patch.setattr(Dimple, "__init__", broken)
        with pytest.raises(ValueError, match="my mistake"):
            start(*words)
    with monkeypatch.context() as patch:
        patch.setattr(Dimple, "forward", broken)
        with pytest.raises(ValueError, match="my mistake"):
            start(*words, "--overwrite")
    with monkeypatch.context() as patch:
        patch.setattr("lab.evaluate.decode_ar", broken)
        with pytest.raises(ValueError, match="my mistake"):
            start(*words, "--overwrite")
    start("--resume", "--out", tmp_path / "o")
    assert len(losses(tmp_path / "o")) == 4


def test_a_strangers_files_are_not_written_over(tmp_path, pictures, capsys, quick):
    out = tmp_path / "o"
    out.mkdir()
    (out / "log.csv").write_text("mine")
    err = refused(capsys, "--out", out, *FEW)
    assert "--out" in err and "holds a file of this name: log.csv; --overwrite replaces it" in err
    assert "--resume" not in err and (out / "log.csv").read_text() == "mine"
    for name in (pictures, f"{pictures}/../{pictures.name}"):
        assert "is the folder of --data" in refused(capsys, "--out", name, "--data", pictures)
    assert not any((pictures / name).exists() for name in FILES)


# ---------------------------------------------------------------- from another run's AR phase

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A short run of both phases, its weights kept where each ended."""
    out = tmp_path_factory.mktemp("whole") / "o"
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        start("--out", out, *FEW, "--ar-steps", 7, "--diffusion-steps", 16, "--keep", 23, 7)
    return out


@pytest.mark.parametrize("stop", [None, 8])
def test_a_run_that_begins_with_another_runs_ar_phase_is_the_whole_run(
        whole, tmp_path, quick, stopped, capsys, stop):
    """Bit for bit, resumed, too, for which the other run is not needed any more."""
    first, out = tmp_path / "ar.pt", tmp_path / "o"
    first.write_bytes((whole / "ar_phase.pt").read_bytes())
    words = ["--out", out, *FEW, "--diffusion-steps", 16, "--ar-phase", first]
    if stop:
        stopped(stop, *words)
        first.unlink()
        start("--out", out, "--resume")
    else:
        start(*words)
    wanted = {step: row for step, row in losses(whole).items() if row[0] == "diffusion"}
    assert losses(out) == wanted and len(wanted) == 16
    assert [step for step, row in wanted.items() if row[-1]] == [10, 20, 23]
    assert same_weights(out / "mini_dimple.pt", whole / "mini_dimple.pt")
    assert not (out / "ar_phase.pt").exists()
    mine, theirs = (json.loads((path / "result.json").read_text()) for path in (out, whole))
    for name in ("correct", "ar_correct", "iterations", "nats_above_floor", "steps"):
        assert mine[name] == theirs[name], name
    assert mine["ms_per_step"].keys() == {"diffusion"}


@pytest.mark.parametrize("weights, words, message", [
    ("mini_dimple.pt", [], "--ar-phase {}: its last phase was 'diffusion'"),
    ("ar_phase.pt", ["--diffusion-steps", 0], "nothing to train"),
    ("log.csv", [], "{}: damaged, or not written by Mini-Dimple"), ("none.pt", [], "'{}'"),
])
def test_what_a_run_cannot_begin_with(whole, tmp_path, capsys, weights, words, message):
    path = whole / weights
    err = refused(capsys, "--out", tmp_path / "o", "--ar-phase", path, *words)
    assert message.format(path) in err and not (tmp_path / "o").exists()


def test_what_an_ar_phase_decides(whole, tmp_path, pictures, quick, capsys):
    """Preset, steps, model, tokenizer and captions are its own, whatever the options say; other
    pictures are read with its tokenizer."""
    model, tokenizer, origin = load(whole / "ar_phase.pt")
    save(tmp_path / "ar.pt", model, tokenizer,
         {**origin, "preset": "small", "steps": 2000, "wording": "one"})
    settings, state = train.settings_from(
        train.parse(["--ar-phase", str(tmp_path / "ar.pt"), "--ar-steps", "5"])[1])
    wanted = dict(preset="small", ar_steps=2000, wording="one", diffusion_steps=6000,
                  examples=40_000, merges=tokenizer.merges)
    assert wanted.items() <= settings.items() and state["step"] == 2000
    words = ["--out", tmp_path / "o", "--ar-phase", whole / "ar_phase.pt", "--diffusion-steps", 2,
             "--holdout", 0, "--data"]
    assert "the prompt is 16 tokens long; at most 3 fit" in refused(capsys, *words, pictures)
    path = make_folder(tmp_path / "d")
    lines = (path / "metadata.jsonl").read_text().splitlines()
    (path / "metadata.jsonl").write_text("\n".join(lines[:-1]))  # without the long prompt
    start(*words, path)
    mine, theirs = load(tmp_path / "o" / "mini_dimple.pt"), load(whole / "ar_phase.pt")
    assert mine.tokenizer.merges == theirs.tokenizer.merges
    assert mine.model.config == theirs.model.config and mine.origin["trained_on"] == "pictures"
    assert list(losses(tmp_path / "o")) == [8, 9]


def test_an_ar_phase_of_pictures_needs_pictures(uninterrupted, tmp_path, capsys):
    err = refused(capsys, "--out", tmp_path / "o", "--ar-phase", uninterrupted / "ar_phase.pt")
    assert "say where they are with --data" in err


def test_weights_of_a_step_are_kept(whole):
    assert same_weights(whole / "step_23.pt", whole / "mini_dimple.pt")
    assert same_weights(whole / "step_7.pt", whole / "ar_phase.pt")
    assert not same_weights(whole / "step_7.pt", whole / "step_23.pt")
    for step, phase in ((7, "ar"), (23, "diffusion")):
        origin = load(whole / f"step_{step}.pt").origin
        assert origin["phase"] == phase and origin["steps"] == step


def test_kept_weights_are_of_the_folders_run(tmp_path, capsys, quick):
    """They go only where the run is replaced."""
    out, words = tmp_path / "o", [*FEW, "--ar-steps", 3, "--diffusion-steps", 0,
                                   "--evaluate", 0]
    start("--out", out, *words, "--keep", 2)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    capsys.readouterr()
    assert "of this name: step_2.pt" in refused(capsys, "--out", out, *words)
    start("--out", out, *words, "--overwrite")
    assert not (out / "step_2.pt").exists() and (out / "mini_dimple.pt").exists()


def test_a_run_without_evaluation(tmp_path, quick, pictures):
    """Neither pictures with captions nor figures of them."""
    for words, quality in ((["--examples", 200], "correct"), (["--data", pictures], "exact_match")):
        out = tmp_path / quality
        start("--out", out, *words, "--ar-steps", 1, "--diffusion-steps", 2, "--evaluate", 0)
        wanted = {*FILES} - {"samples.png"}
        assert {path.name for path in out.iterdir()} == wanted
        result = json.loads((out / "result.json").read_text())
        assert quality not in result and result[f"ar_{quality}"] is None
        assert result["evaluated"] == 0 and result["steps"] == 3
        assert ("nats_above_floor" in result) == (quality == "correct"), "known of the toy set"
        assert load(out / "mini_dimple.pt").origin["figures"] == {}


@pytest.mark.slow
def test_preset_small_runs_some_steps(tmp_path):
    start("--preset", "small", "--examples", 300, "--evaluate", 2, "--ar-steps", 6,
          "--diffusion-steps", 4, "--out", tmp_path / "o", "--device", "cpu")
    values = [float(loss) for _, loss, *_ in losses(tmp_path / "o").values()]
    assert len(values) == 10 and values[5] < values[0]


@pytest.mark.slow
def test_compile(pictures, tmp_path):
    plain, compiled = tmp_path / "p", tmp_path / "c"
    for out, extra in ((plain, []), (compiled, ["--compile"])):
        run("--data", pictures, *SHORT, "--out", out, "--device", "cpu", *extra)
    a, b = ([float(loss) for _, loss, *_ in losses(out).values()] for out in (plain, compiled))
    # the same gradients, too; later steps amplify the rounding
    assert a[:4] == pytest.approx(b[:4], rel=0.005)
    assert len(a) == len(b) and b[-1] < b[0]


def test_a_few_examples_train_without_the_floor_fewer_are_refused(tmp_path, capsys):
    few = ["--evaluate", "4", "--ar-steps", "1", "--diffusion-steps", "2", "--device", "cpu"]
    train.main(["--out", str(tmp_path / "a"), "--examples", "7", *few])
    assert "the loss above its floor is not measured" in capsys.readouterr().out
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert "nats_above_floor" not in result and "correct_at_temperature_1" in result
    words = refused_by(train.main)(capsys, "--out", tmp_path / "b", "--examples", "5", *few)
    assert "--examples 5: too few to learn the toy's words from" in words
