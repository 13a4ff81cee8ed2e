"""train.py as its users run it: overfitting, resuming bit for bit, refusing what would lose work,
every file it writes."""
import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import decoded, refused_by
from PIL import Image

import train
from data import Batches, folder, pad_prompts, toy
from lab import training
from lab.checkpoint import ROOT, load, save
from lab.evaluate import Floor
from lab.training import TRAINING, make_optimizers, phase_loss
from lab.variants import PrefixMasked
from mini_dimple import Config, Dimple, confident, decode_ar, full, prefilled, schedule
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
        return {int(row["step"]): tuple(row[name] for name in row if name not in TIMES)
                for row in csv.DictReader(file)}


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
        phase, factor = schedule(step, ar_steps, diffusion_steps)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        generator = torch.Generator().manual_seed(step)
        phase_loss(model, batches(step, phase), phase, generator).backward()
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
    assert set(os.listdir(out)) == set(train.FILES)
    assert Image.open(out / "samples.png").width > 200
    assert [row[0] for row in losses(out).values()] == ["ar"] * 80 + ["diffusion"] * 240


SHORT = ["--ar-steps", 7, "--diffusion-steps", 16, "--holdout", 0]
FEW = ["--examples", 200, "--evaluate", 4]  # of the toy set


def hurry(patch):
    """Small batches; every 10 steps the loss above its floor."""
    patch.setitem(TRAINING["tiny"], "batch_size", 8)
    patch.setattr(train, "FLOOR_EVERY", 10)


@pytest.fixture
def quick(monkeypatch):
    """`hurry`, and checkpoints every 5 steps."""
    hurry(monkeypatch)
    monkeypatch.setattr(train, "SAVE_EVERY", 5)


@pytest.fixture
def stopped(monkeypatch, capsys):
    """-> stopped(steps, *words): train.main on these words, interrupted after so many steps."""
    def run(steps, *words):
        calls, real = [], train.phase_loss

        def stopping(*rest):
            if len(calls) == steps:
                raise KeyboardInterrupt
            calls.append(rest)
            return real(*rest)
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr(train, "phase_loss", stopping)
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
        assert "does not exist" in refused(capsys, "--out", broken, "--resume")
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


@pytest.mark.slow
def test_killed_and_resumed(pictures, tmp_path):
    """SIGKILL, as a power cut would: last.pt is whole, and the losses go on as without it."""
    flags = ["--data", pictures, "--ar-steps", 30, "--diffusion-steps", 10, "--holdout", 0]
    code = "import train; train.SAVE_EVERY = 20; train.main()"
    command = [sys.executable, "-c", code, *map(str, flags), "--out", tmp_path / "k"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
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
    start("--out", out, *FEW, "--ar-steps", 3, "--diffusion-steps", 12, "--seed", 5)
    result = json.loads((out / "result.json").read_text())
    assert {"correct", "count_correct", "iterations", "response_tokens", "ar_correct",
            "correct_at_temperature_1", "correct_without_prefill", "train_seconds", "steps",
            "device", "threads", "recipe", "preset", "seed"} <= set(result)
    said = dict(steps=15, recipe="ar-then-diffusion", preset="tiny", seed=5, evaluated=4)
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

    before = {name: (out / name).read_bytes() for name in train.FILES}
    assert "--overwrite" in refused(capsys, "--out", out)
    start("--out", out, "--resume")
    assert "finished" in capsys.readouterr().out
    assert "--seed is 6 here, 5 in" in refused(capsys, "--out", out, "--resume", "--seed", 6)
    assert "--preset is small" in refused(capsys, "--out", out, "--resume", "--preset", "small")
    assert "choose one" in refused(capsys, "--out", out, "--resume", "--overwrite")
    assert "metadata.jsonl" in refused(capsys, "--out", out, "--overwrite", "--data", tmp_path)
    after = {name: (out / name).read_bytes() for name in train.FILES}
    assert before == after, "nothing is lost by a mistake"
    start("--out", out, *FEW, "--overwrite", "--recipe", "ar", "--ar-steps", 2)
    result = json.loads((out / "result.json").read_text())
    assert result["recipe"] == "ar" and result["correct"] == result["ar_correct"]
    assert not {"nats_above_floor", "correct_at_temperature_1"} & set(result), "of diffusion"
    assert load(out / "mini_dimple.pt").origin["phase"] == "ar"


def test_what_the_captions_leave_open_goes_with_the_weights(tmp_path, quick, capsys):
    """Into the checkpoints, by which captions are graded; a resumed run has no other."""
    out = tmp_path / "o"
    words = ["--out", out, *FEW, "--ar-steps", 1, "--diffusion-steps", 1, "--wording", "three",
             "--order", "free"]
    start(*words)
    for name in ("ar_phase.pt", "mini_dimple.pt"):
        board = toy.of(load(out / name).origin)
        assert board == toy.TOYS["tiny"]._replace(wording="three", order="free")
    capsys.readouterr()
    for option, value in (("--wording", "two"), ("--order", "reading")):
        err = refused(capsys, "--out", out, "--resume", option, value)
        assert f"{option} is {value} here, {words[words.index(option) + 1]} in" in err
    usual = train.settings_from(train.parse([])[1])
    assert (usual["wording"], usual["order"]) == ("two", "reading")


def test_pure_diffusion_and_defaults_of_the_recipes():
    def steps(*words):
        settings = train.settings_from(train.parse(words)[1])
        return settings["ar_steps"], settings["diffusion_steps"]
    ar, diffusion = steps()
    assert steps("--recipe", "diffusion") == (0, ar + diffusion)
    assert steps("--recipe", "ar") == (ar + diffusion, 0)
    assert steps("--ar-steps", "3", "--diffusion-steps", "4") == (3, 4)
    assert steps("--ar-steps", "0") == (0, diffusion)


def test_a_loss_that_is_not_finite_stops_the_run(pictures, tmp_path, quick, monkeypatch, capsys):
    calls, real = 0, train.phase_loss

    def poisoned(*words):
        nonlocal calls
        calls += 1
        return real(*words) * (float("nan") if calls == 13 else 1)
    monkeypatch.setattr(train, "phase_loss", poisoned)
    with pytest.raises(SystemExit) as end:
        start("--data", pictures, *SHORT, "--out", tmp_path / "o")
    err = capsys.readouterr().err
    assert end.value.code == 1 and "Traceback" not in err
    assert "the loss is nan at step 13" in err and "last.pt (step 10)" in err
    state = torch.load(tmp_path / "o" / "last.pt", weights_only=True)
    assert state["step"] == 10
    assert all(weight.isfinite().all() for weight in state["weights"].values())
    assert max(losses(tmp_path / "o")) == 12
    monkeypatch.setattr(train, "phase_loss", real)
    start("--resume", "--out", tmp_path / "o")


@pytest.mark.parametrize("words, message", [
    (["--ar-steps", "-1"], "must be 0 or more"), (["--diffusion-steps", "x"], "--diffusion-steps"),
    (["--seed", "-3"], "must be 0 or more"), (["--seed", "99999999999999"], "below 2^32"),
    (["--ar-steps", "0", "--diffusion-steps", "0"], "nothing to train"),
    (["--preset", "huge"], "--preset"), (["--recipe", "x"], "--recipe"),
    (["--recipe", "diffusion", "--ar-steps", "5"], "--ar-steps"),
    (["--recipe", "ar", "--diffusion-steps", "5"], "--diffusion-steps"),
    (["--recipe", "ar", "--weighting", "elbo"], "--weighting"),
    (["--recipe", "ar", "--prefix-mask"], "--prefix-mask"), (["--padding", "much"], "--padding"),
    (["--holdout", "1"], "below 1"), (["--holdout", "nan"], "below 1"),
    (["--holdout", "0.5"], "--data"), (["--data", "none"], "none: cannot be read as a folder"),
    (["--examples", "9", "--data", "none"], "--examples"), (["--examples", "0"], "--examples"),
    (["--evaluate", "-1"], "--evaluate"), (["--keep", "0"], "--keep"),
    (["--keep", "5", "1201"], "--keep 1201: this run has steps 1 to 1200"),
    (["--wording", "four"], "--wording"), (["--order", "random"], "--order"),
    (["--wording", "one", "--data", "none"], "--wording is for the toy set"),
    (["--order", "free", "--data", "none"], "--order is for the toy set"),
    (["--preset", "small", "--order", "free"], "--order free is for the preset tiny, not"),
    (["--recipe", "ar", "--ar-steps", "3", "--keep", "4"], "--keep 4: this run has steps 1 to 3"),
    (["--resume"], "does not exist"), (["--nonsense"], "--nonsense"),
    (["--device", "tpu"], "--device"),
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


def test_a_run_goes_on_with_pictures_that_moved(tmp_path, quick, capsys):
    """What is compared is what options resolve to: not the folder's name, its spelling, or "auto"
    for the same device."""
    path, out = make_folder(tmp_path / "d"), tmp_path / "o"
    start("--data", path, *SHORT, "--out", out, "--device", "cpu")
    whole = losses(out)
    state = torch.load(out / "last.pt", weights_only=True)
    for name in ("result.json", "samples.png", "mini_dimple.pt"):
        (out / name).unlink()
    results = {"ar": state["results"]["ar"]}  # as if stopped in the last evaluation
    torch.save({**state, "results": results}, out / "last.pt")
    path.rename(tmp_path / "moved")
    capsys.readouterr()
    assert "say where they are with --data" in refused(capsys, "--out", out, "--resume")
    assert "metadata.jsonl" in refused(capsys, "--out", out, "--resume", "--data", tmp_path)
    changed = make_folder(tmp_path / "changed")
    Image.new("RGB", (64, 48), "green").save(changed / "0.png")
    assert "the data" in refused(capsys, "--out", out, "--resume", "--data", changed)
    start("--resume", "--out", out, "--data", f"{tmp_path}/changed/../moved",
          "--device", "cpu" if torch.cuda.is_available() else "auto")
    assert (out / "result.json").exists() and losses(out) == whole
    settings = torch.load(out / "last.pt", weights_only=True)["settings"]
    assert settings["data"] == str(tmp_path / "moved")


def test_changed_data_and_damaged_runs_are_not_resumed(pictures, tmp_path, quick, capsys):
    path, out = make_folder(tmp_path / "d"), tmp_path / "o"
    start("--data", path, "--out", out, *SHORT)
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
    for step in (3, 9):
        batch, again = a(step, "diffusion"), b(step, "diffusion")
        assert all(torch.equal(x, y) for x, y in zip(batch, again))
    seen = torch.cat([a(step, "ar")[0] for step in range(6)]).flatten(1)
    assert len(seen.unique(dim=0)) == 96, "an epoch shows no picture twice"
    bare = Batches(split, tokenizer, config, 16, 0, "cpu", padding="none")
    for step in range(12):
        _, _, response = bare(step, "diffusion")
        assert ((response == config.eos_id).sum(1) == 1).any(), "no longer than the longest"
        assert torch.equal(response, bare(step, "ar")[2])


@pytest.mark.slow
def test_options_of_the_diffusion_phase_reach_it(tmp_path, quick, monkeypatch):
    """Each option changes the diffusion phase and leaves the AR phase before it as it was;
    --complementary keeps the cost of a step."""
    rows = []

    def spy(name):
        real = getattr(training, name)

        def spying(model, images, prompt, response, weighting, generator):
            rows.append((name, len(images), weighting))
            return real(model, images, prompt, response, weighting, generator)
        monkeypatch.setattr(training, name, spying)
    spy("diffusion_loss")
    spy("complementary_loss")
    found = {}
    for words in ([], ["--weighting", "elbo"], ["--complementary"], ["--padding", "none"],
                  ["--prefix-mask"]):
        out = tmp_path / "-".join(["o", *words])
        start("--out", out, *FEW, "--evaluate", 0, "--ar-steps", 2, "--diffusion-steps", 3,
              "--device", "cpu", *words)
        found["".join(words)] = [row[1] for row in losses(out).values()]
        model, _, origin = load(out / "mini_dimple.pt")
        assert origin["prefix_mask"] == ("--prefix-mask" in words)
        assert isinstance(model, PrefixMasked) == origin["prefix_mask"]
    assert len({tuple(values[:2]) for values in found.values()}) == 1
    assert len({tuple(values[2:]) for values in found.values()}) == 5
    assert set(rows) == {("diffusion_loss", 8, "flat"), ("diffusion_loss", 8, "elbo"),
                         ("complementary_loss", 4, "flat")}


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
        err = refused(capsys, "--out", out, "--resume", "--ar-phase", whole / "ar_phase.pt")
        assert "--ar-phase is" in err
        start("--out", out, "--resume", "--ar-phase", f"{tmp_path}/o/../ar.pt")
    else:
        start(*words)
    wanted = {step: row for step, row in losses(whole).items() if row[0] == "diffusion"}
    assert losses(out) == wanted and len(wanted) == 16
    assert [step for step, row in wanted.items() if row[-1]] == [10, 20, 23]
    assert same_weights(out / "mini_dimple.pt", whole / "mini_dimple.pt")
    assert not (out / "ar_phase.pt").exists()
    mine, theirs = (json.loads((path / "result.json").read_text()) for path in (out, whole))
    for name in ("correct", "ar_correct", "iterations", "nats_above_floor", "steps", "recipe"):
        assert mine[name] == theirs[name], name
    assert mine["ms_per_step"].keys() == {"diffusion"}


@pytest.mark.parametrize("weights, words, message", [
    ("mini_dimple.pt", [], "--ar-phase {}: its last phase was 'diffusion'"),
    ("ar_phase.pt", ["--preset", "small"], "--ar-phase {}: is of 7 steps of the preset tiny"),
    ("ar_phase.pt", ["--ar-steps", 8], "--ar-phase {}: is of 7 steps of the preset tiny"),
    ("ar_phase.pt", ["--diffusion-steps", 0], "nothing to train"),
    ("ar_phase.pt", ["--recipe", "ar"], "--ar-phase: the recipe 'ar' does not begin with it"),
    ("ar_phase.pt", ["--recipe", "diffusion"], "--ar-phase: the recipe 'diffusion' does not"),
    ("ar_phase.pt", ["--keep", 7], "--keep 7: this run has steps 8 to 807"),
    ("ar_phase.pt", ["--keep", 808], "--keep 808: this run has steps 8 to 807"),
    *(("ar_phase.pt", [*FEW, *words], "--ar-phase {}: is of other captions than this run; give the "
       "--wording and --order that it was trained with") for words in (
           ["--wording", "one"], ["--order", "free"])),
    ("ar_phase.pt", ["--examples", 100], "--ar-phase {}: is of other data or another model"),
    ("log.csv", [], "{}: damaged, or not written by Mini-Dimple"), ("none.pt", [], "'{}'"),
])
def test_what_a_run_cannot_begin_with(whole, tmp_path, capsys, weights, words, message):
    path = whole / weights
    err = refused(capsys, "--out", tmp_path / "o", "--ar-phase", path, *words)
    assert message.format(path) in err and not (tmp_path / "o").exists()


def test_an_ar_phase_of_other_data(whole, pictures, tmp_path, capsys):
    path = whole / "ar_phase.pt"
    err = refused(capsys, "--out", tmp_path / "o", "--ar-phase", path, "--data", pictures)
    assert f"--ar-phase {path}: is of other " in err and not (tmp_path / "o").exists()


def test_the_preset_is_the_ar_phases(whole, tmp_path):
    """Unless another is asked for."""
    model, tokenizer, origin = load(whole / "ar_phase.pt")
    save(tmp_path / "ar.pt", model, tokenizer, {**origin, "preset": "small", "steps": 2000})
    settings = train.settings_from(train.parse(["--ar-phase", str(tmp_path / "ar.pt")])[1])
    wanted = dict(preset="small", ar_steps=2000,
                  **{name: TRAINING["small"][name] for name in ("diffusion_steps", "examples")})
    assert wanted.items() <= settings.items()


def test_weights_of_a_step_are_kept(whole, capsys):
    assert same_weights(whole / "step_23.pt", whole / "mini_dimple.pt")
    assert same_weights(whole / "step_7.pt", whole / "ar_phase.pt")
    assert not same_weights(whole / "step_7.pt", whole / "step_23.pt")
    for step, phase in ((7, "ar"), (23, "diffusion")):
        origin = load(whole / f"step_{step}.pt").origin
        assert origin["phase"] == phase and origin["steps"] == step
    assert "--keep is [5] here, [7, 23] in" in refused(
        capsys, "--out", whole, "--resume", "--keep", 5)
    start("--out", whole, "--resume", "--keep", 7, 23)
    assert "finished" in capsys.readouterr().out


def test_kept_weights_are_of_the_folders_run(tmp_path, capsys, quick):
    """They go only where the run is replaced."""
    out, words = tmp_path / "o", [*FEW, "--recipe", "ar", "--ar-steps", 3, "--evaluate", 0]
    start("--out", out, *words, "--keep", 2)
    for name in train.FILES:
        (out / name).unlink(missing_ok=True)
    capsys.readouterr()
    assert "step_2.pt of an earlier run" in refused(capsys, "--out", out, *words)
    start("--out", out, *words, "--overwrite")
    assert not (out / "step_2.pt").exists() and (out / "mini_dimple.pt").exists()


def test_a_run_without_evaluation(tmp_path, quick, pictures):
    """Neither pictures with captions nor figures of them."""
    for words, quality in ((["--examples", 200], "correct"), (["--data", pictures], "exact_match")):
        out = tmp_path / quality
        start("--out", out, *words, "--ar-steps", 1, "--diffusion-steps", 2, "--evaluate", 0)
        wanted = {*train.FILES} - {"samples.png"}
        assert {path.name for path in out.iterdir()} == wanted
        result = json.loads((out / "result.json").read_text())
        assert quality not in result and result[f"ar_{quality}"] is None
        assert result["evaluated"] == 0 and result["steps"] == 3
        assert ("nats_above_floor" in result) == (quality == "correct"), "known of the toy set"
        assert "figures" not in load(out / "mini_dimple.pt").origin


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
