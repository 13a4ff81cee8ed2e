"""train.py as its users run it: overfitting, resuming bit for bit, refusing what would lose work,
every file it writes."""
import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import decoded, hurry, refused_by
from PIL import Image

import train
from data import Batches, folder, pad_prompts, toy
from lab.checkpoint import ROOT, load
from lab.evaluate import Floor
from lab.run import FILES
from lab.variants import VARIANTS, PrefixMasked
from mini_dimple import Config, Dimple
from tokenizer import Tokenizer

CAPTIONS = ["a red thing", "something green, and more", "the blue one", "grey as rain"]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of pictures of mixed sizes and modes and their captions; two instructions."""
    path = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (64, 48), "red").save(path / "0.png")
    Image.new("RGBA", (30, 90), (0, 160, 0, 200)).save(path / "1.png")
    Image.new("RGB", (200, 10), "blue").save(path / "2.png")
    Image.new("L", (48, 48), 120).save(path / "3.png")
    lines = [{"file_name": f"{i}.png", "text": text} for i, text in enumerate(CAPTIONS)]
    lines.append({"file_name": "0.png", "text": "red", "prompt": "which colour is this picture?"})
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


def losses(out):
    """step -> phase, loss, learning rate, nats above the floor (all and by share masked), as
    written, from log.csv."""
    with open(out / "log.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len({row["step"] for row in rows}) == len(rows), "each step once"
    return {int(row["step"]): tuple(row[name] for name in row if name not in ("step", "seconds"))
            for row in rows}


def same_weights(a, b):
    """Of two checkpoints."""
    a, b = (torch.load(path, weights_only=True)["weights"] for path in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def start(*words):
    train.main([str(word) for word in words])


refused = refused_by(train.main)


@pytest.mark.slow
def test_your_own_pictures_are_overfitted_to_exact_captions(pictures, tmp_path):
    start("--data", pictures, "--out", tmp_path, "--holdout", 0, "--ar-steps", 80,
          "--diffusion-steps", 240, "--seed", 1)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["exact_match"] == 1 and result["ar_exact_match"] == 1 and result["loss"] < 0.5
    assert {path.name for path in tmp_path.iterdir()} == {*FILES}
    assert Image.open(tmp_path / "samples.png").width > 200
    model, tokenizer, _ = load(tmp_path / "mini_dimple.pt")
    for line in map(json.loads, (pictures / "metadata.jsonl").read_text().splitlines()):
        image = folder.load_image(pictures / line["file_name"], model.config.image_px)[None]
        prompt = pad_prompts([line.get("prompt", toy.DESCRIBE)], tokenizer,
                             model.config.prompt_tokens)
        window = torch.full((1, model.config.window), tokenizer.mask_id)
        assert tokenizer.decode(decoded(model, image, prompt, window).response(0)) == line["text"]


STEPS = ["--ar-steps", 7, "--diffusion-steps", 16]
SHORT = [*STEPS, "--holdout", 0, "--evaluate", 3]
FEW = [*STEPS, "--evaluate", 2]  # of the toy set


# ---------------------------------------------------------------- stopped, and resumed

@pytest.fixture(scope="module")
def uninterrupted(pictures, tmp_path_factory):
    """A whole run on the pictures."""
    out = tmp_path_factory.mktemp("uninterrupted") / "o"
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        start("--data", pictures, *SHORT, "--out", out)
    return out


def interrupted(monkeypatch, step, kill, *words):
    """A run on these words, at whose step `kill` is called -> its exit status."""
    steps, real = iter(range(99)), train.schedule

    def killing(*rest):
        if next(steps) == step:
            kill()
        return real(*rest)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(train, "schedule", killing)
        start(*words)
    return end.value.code


def is_the_whole_run(out, whole):
    assert losses(out) == losses(whole) and len(losses(out)) == 23
    assert same_weights(whole / "mini_dimple.pt", out / "mini_dimple.pt")
    mine, theirs = (json.loads((path / "result.json").read_text()) for path in (out, whole))
    assert mine["ar_exact_match"] == theirs["ar_exact_match"]


@pytest.mark.parametrize("name, step", [("SIGTERM", 5), ("SIGINT", 12)])
def test_stopped_by_a_signal_and_resumed(pictures, uninterrupted, tmp_path, quick, monkeypatch,
                                         capsys, name, step):
    """The step is finished and saved, how to go on is said; the rest is the same, bit for bit. What
    the handler did before it does again."""
    out, number = tmp_path / "o", getattr(signal, name)
    before = signal.getsignal(number)
    status = interrupted(monkeypatch, step, lambda: os.kill(os.getpid(), number),
                         "--data", pictures, *SHORT, "--out", out)
    assert status == 128 + number and signal.getsignal(number) == before
    assert f"(step {step + 1}); python train.py --resume --out {out}" in capsys.readouterr().err
    assert torch.load(out / "last.pt", weights_only=True)["step"] == step + 1
    # with that run's options: others are ignored
    start("--resume", "--out", out, "--seed", 6, "--preset", "small", "--variant", "flat")
    is_the_whole_run(out, uninterrupted)


KILLED = """import os, signal, lab.run, train
lab.run.SAVE_EVERY, lab.run.LOG_EVERY = 5, 2
train.PRESETS["tiny"]["batch_size"] = 8
real, steps = train.schedule, iter(range(99))
def killing(*rest):
    if next(steps) == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*rest)
train.schedule = killing
train.main()"""


def test_killed_and_resumed(pictures, uninterrupted, tmp_path, quick):
    """As by a power cut, which loses the steps since last.pt was written; the log may be lost."""
    out = tmp_path / "o"
    words = [sys.executable, "-c", KILLED, "--data", pictures, *SHORT, "--out", out]
    done = subprocess.run([*map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert torch.load(out / "last.pt", weights_only=True)["step"] == 10
    assert max(losses(out)) == 12
    (out / "log.csv").unlink()
    start("--resume", "--out", out)
    is_the_whole_run(out, uninterrupted)


def test_stopped_in_an_evaluation(pictures, uninterrupted, tmp_path, quick, monkeypatch, capsys):
    """At once: all steps are saved. The evaluation is made again."""
    out = tmp_path / "o"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(train, "evaluate", lambda *rest: os.kill(os.getpid(), signal.SIGINT))
        start("--data", pictures, *SHORT, "--out", out)
    assert end.value.code == 130 and "last.pt (step 7)" in capsys.readouterr().err
    start("--resume", "--out", out)
    is_the_whole_run(out, uninterrupted)


def test_a_second_ctrl_c_stops_at_once(pictures, tmp_path, quick, monkeypatch, capsys):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")
    words = ["--data", pictures, *SHORT, "--out", tmp_path]
    assert interrupted(monkeypatch, 2, twice, *words) == 130
    assert "stopped" in capsys.readouterr().err and not (tmp_path / "last.pt").exists()
    assert "--overwrite" in refused(capsys, *words)
    assert "last.pt" in refused(capsys, "--out", tmp_path, "--resume")


def test_a_loss_that_is_not_finite_stops_the_run(pictures, tmp_path, quick, monkeypatch, capsys):
    """What was saved before is whole."""
    calls, real = iter(range(99)), train.diffusion_loss
    monkeypatch.setattr(train, "diffusion_loss", lambda *words: real(*words) * (
        float("nan") if next(calls) == 5 else 1))
    with pytest.raises(SystemExit) as end:
        start("--data", pictures, *SHORT, "--out", tmp_path)
    assert end.value.code == 1 and "last.pt (step 10)" in capsys.readouterr().err
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["step"] == 10
    assert all(weight.isfinite().all() for weight in state["weights"].values())
    assert losses(tmp_path)[13][1] == "nan"


def test_a_full_disk_is_one_line(pictures, tmp_path, quick, capsys):
    """What was saved before is whole."""
    (tmp_path / "ar_phase.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(SystemExit):
        start("--data", pictures, *SHORT, "--out", tmp_path)
    err = capsys.readouterr().err.splitlines()[-1]
    assert "No space left" in err and "ar_phase.pt" in err
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "log.csv"}
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 7


def test_what_is_not_resumed(uninterrupted, pictures, tmp_path, quick, capsys):
    """Pictures that have changed, and a damaged file."""
    path = shutil.copytree(pictures, tmp_path / "d")
    state = torch.load(uninterrupted / "last.pt", weights_only=True)
    state["settings"]["data"] = str(path)
    torch.save(state, tmp_path / "last.pt")
    lines = (path / "metadata.jsonl").read_text()
    (path / "metadata.jsonl").write_text(lines.replace("a red thing", "a red king"))
    assert "no longer what the run began with" in refused(capsys, "--resume", "--out", tmp_path)
    (tmp_path / "last.pt").write_bytes(b"junk")
    assert "last.pt: damaged" in refused(capsys, "--resume", "--out", tmp_path)


def test_an_error_in_the_model_keeps_its_traceback(tmp_path, quick, monkeypatch):
    """Also of a kind that is one line where options and files make it."""
    def broken(*rest, **options):
        raise ValueError("my mistake")
    monkeypatch.setattr(Dimple, "forward", broken)
    with pytest.raises(ValueError, match="my mistake"):
        start("--out", tmp_path / "o", *FEW)


# ---------------------------------------------------------------- files, options

def test_toy_run_writes_every_figure(whole):
    result = json.loads((whole / "result.json").read_text())
    assert {"count_correct", "iterations", "response_tokens", "ar_correct", "train_seconds",
            "correct_at_temperature_1", "correct_without_prefill", "device"} <= set(result)
    said = dict(steps=23, preset="tiny", seed=0, variant=[], evaluated=2)
    assert said.items() <= result.items()
    shares = result["mistakes"]  # the first thing wrong with each caption
    assert set(shares) <= set(toy.MISTAKES) and sum(shares.values()) + result["correct"] == 1
    scenes = toy.examples(toy.TOYS["tiny"], 2, 0, held_out=True, instruction=toy.DESCRIBE).scenes
    for name in ("correct_by_objects", "iterations_by_objects_and_exact"):
        assert set(result[name]) == {str(len(scene)) for scene in scenes}
    floor = {step: row[3:] for step, row in losses(whole).items() if any(row[3:])}
    assert list(floor) == [10, 20, 23], "every 10 steps of diffusion, and after the last"
    nats = [*map(float, floor[23])]
    assert list(result["nats_above_floor"]) == ["all", *Floor.PARTS]
    assert nats == pytest.approx([*result["nats_above_floor"].values()], abs=1e-5)
    assert nats[0] > 0.5 and nats[0] < float(floor[10][0])
    for name in ("ar_phase.pt", "mini_dimple.pt"):  # by which captions are graded
        assert toy.of(load(whole / name).origin) == toy.TOYS["tiny"]._replace(wording="three")


def test_nothing_is_lost_by_a_mistake(whole, tmp_path, quick, capsys):
    before = {path: path.read_bytes() for path in whole.iterdir()}
    assert "mini_dimple.pt" in refused(capsys, "--out", whole)
    start("--out", whole, "--resume")
    assert "finished" in capsys.readouterr().out
    for words, named in ((["--data", tmp_path], "metadata.jsonl"), (["--examples", 5], "too few"),
                         (["--ar-phase", whole / "ar_phase.pt"], "holds the --ar-phase"),
                         (["--variant", "flat", "example"], "--variant")):
        assert named in refused(capsys, "--out", whole, "--overwrite", *words)
    assert before == {path: path.read_bytes() for path in whole.iterdir()}
    out = tmp_path / "o"
    out.mkdir()
    for name in ("step_2.pt", "mine.txt"):
        (out / name).touch()
    words = ["--out", out, "--ar-steps", 2, "--diffusion-steps", 0, "--evaluate", 2]
    assert "step_2.pt" in refused(capsys, *words)
    start(*words, "--overwrite")
    assert not (out / "step_2.pt").exists() and (out / "mine.txt").exists()
    assert load(out / "mini_dimple.pt").origin["phase"] == "ar"
    result = json.loads((out / "result.json").read_text())
    assert not {"nats_above_floor", "correct_at_temperature_1"} & set(result), "of diffusion"


def test_what_a_preset_decides_unless_an_option_does():
    def found(*words):
        settings, state = train.settings_from(train.parse(words)[1])
        assert state is None
        return [settings[name] for name in ("ar_steps", "diffusion_steps", "examples")]
    assert found() == [400, 800, 20_000]
    assert found("--preset", "small", "--ar-steps", "0", "--examples", "9") == [0, 6000, 9]


@pytest.mark.parametrize("words, named", [
    (["--ar-steps", "-1"], "--ar-steps"), (["--seed", "99999999999999"], "--seed"),
    (["--holdout", "nan"], "--holdout"), (["--ar-steps", 0, "--diffusion-steps", 0], "nothing"),
    (["--data", "none"], "none"), (["--preset", "small", "--order", "free"], "--order free"),
    (["--resume"], "last.pt")])
def test_bad_options(words, named, tmp_path, capsys):
    assert named in refused(capsys, *words, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_captions_that_do_not_fit_are_named(pictures, tmp_path, capsys):
    path = shutil.copytree(pictures, tmp_path / "d")
    text = "".join(map(chr, range(0x4E00, 0x4E40)))
    with open(path / "metadata.jsonl", "a") as file:
        file.write("\n" + json.dumps({"file_name": "1.png", "text": text}))
    err = refused(capsys, "--data", path, "--holdout", 0, "--out", tmp_path / "o")
    assert "metadata.jsonl:6: the caption is" in err and not (tmp_path / "o").exists()


def test_a_run_without_evaluation(tmp_path, quick, pictures):
    """Neither pictures with captions nor figures of them."""
    out = tmp_path / "o"
    start("--out", out, "--data", pictures, "--ar-steps", 1, "--diffusion-steps", 2,
          "--evaluate", 0)
    assert {path.name for path in out.iterdir()} == {*FILES} - {"samples.png"}
    result = json.loads((out / "result.json").read_text())
    assert "exact_match" not in result and result["ar_exact_match"] is None
    assert load(out / "mini_dimple.pt").origin["figures"] == {}


# ---------------------------------------------------------------- batches, variants

def test_every_prompt_ends_at_the_same_position():
    class Words:
        eos_id = 9
        encode = staticmethod(lambda text: [int(letter) for letter in text])
    assert pad_prompts(["1", "234"], Words, 4).tolist() == [[9, 9, 9, 1], [9, 2, 3, 4]]


def test_batches_are_a_function_of_the_step_and_windows_vary():
    split = toy.examples(toy.TOYS["tiny"], 100, 0, held_out=False)
    tokenizer = Tokenizer.train(split.texts + split.prompts)
    config = Config(tokenizer.vocab_size, tokenizer.eos_id, tokenizer.mask_id)
    a, b, bare = (Batches(split, tokenizer, config, 16, 0, "cpu", padding)
                  for padding in ("random", "random", "none"))
    for step in (3, 9):
        batch, again = a(step, "diffusion"), b(step, "diffusion")
        assert all(torch.equal(x, y) for x, y in zip(batch, again))
    widths = set()
    for step in range(100):
        ends = (response := a(step, "diffusion")[2]) == config.eos_id
        assert (ends.sum(1) >= 1).all(), "at least one EOS"
        longest = bare(step, "diffusion")[2]
        assert ((longest == config.eos_id).sum(1) == 1).any(), "no longer than the longest"
        assert torch.equal(longest, a(step, "ar")[2]) and longest.shape[1] <= response.shape[1]
        widths.add(response.shape[1])
    assert len(widths) > 3 and max(widths) == config.window, "the longest is drawn, too"
    epochs = [torch.cat([a(step, "ar")[0] for step in range(start, start + 6)]).flatten(1)
              for start in (0, 6)]
    assert all(len(seen.unique(dim=0)) == 96 for seen in epochs), "an epoch shows no picture twice"
    assert not torch.equal(*epochs), "each in an order of its own"


@pytest.mark.slow
def test_variants_reach_the_diffusion_phase(tmp_path, quick):
    """Each changes the diffusion phase, and leaves the AR phase before it as it was."""
    found = {}
    for variants in ([], *([name] for name in VARIANTS), ["flat", "complementary"]):
        out = tmp_path / "-".join(["o", *variants])
        start("--out", out, "--evaluate", 0, "--ar-steps", 2, "--diffusion-steps", 3,
              "--device", "cpu", *(["--variant", *variants] if variants else []))
        found["-".join(variants)] = [row[1] for row in losses(out).values()]
        model, _, origin = load(out / "mini_dimple.pt")
        assert isinstance(model, PrefixMasked) == ("prefix-mask" in variants)
        assert origin["variant"] == variants
    assert len({tuple(values[:2]) for values in found.values()}) == 1
    assert len({tuple(values[2:]) for values in found.values()}) == len(found) == 7


# ---------------------------------------------------------------- from another run's AR phase

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A short run of both phases, its weights kept where each ended."""
    out = tmp_path_factory.mktemp("whole") / "o"
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        start("--out", out, *FEW, "--wording", "three", "--keep", 23, 7)
    return out


def test_weights_of_a_step_are_kept(whole):
    for step, phase, name in ((7, "ar", "ar_phase.pt"), (23, "diffusion", "mini_dimple.pt")):
        origin = load(whole / f"step_{step}.pt").origin
        assert origin["phase"] == phase and origin["steps"] == step
        assert same_weights(whole / f"step_{step}.pt", whole / name)
    assert not same_weights(whole / "step_7.pt", whole / "step_23.pt")


def test_a_run_that_begins_with_another_runs_ar_phase_is_the_whole_run(
        whole, tmp_path, quick, monkeypatch, capsys):
    """Bit for bit, resumed, too, for which the other run is not needed any more."""
    first, out = tmp_path / "ar.pt", tmp_path / "o"
    first.write_bytes((whole / "ar_phase.pt").read_bytes())
    interrupted(monkeypatch, 8, lambda: os.kill(os.getpid(), signal.SIGTERM), "--out", out, *FEW,
                "--ar-phase", first)
    first.unlink()
    start("--out", out, "--resume")
    wanted = {step: row for step, row in losses(whole).items() if row[0] == "diffusion"}
    assert losses(out) == wanted and len(wanted) == 16
    assert same_weights(out / "mini_dimple.pt", whole / "mini_dimple.pt")
    assert not (out / "ar_phase.pt").exists()
    mine, theirs = (json.loads((path / "result.json").read_text()) for path in (out, whole))
    for name in ("correct", "ar_correct", "iterations", "nats_above_floor", "steps"):
        assert mine[name] == theirs[name], name


def test_what_a_run_cannot_begin_with(whole, uninterrupted, tmp_path, capsys):
    for path, words, named in (
            (whole / "mini_dimple.pt", [], "mini_dimple.pt: its last phase was 'diffusion'"),
            (whole / "ar_phase.pt", ["--diffusion-steps", 0], "nothing to train"),
            (whole / "log.csv", [], "log.csv: damaged"),
            (uninterrupted / "ar_phase.pt", [], "--data")):
        assert named in refused(capsys, "--out", tmp_path / "o", "--ar-phase", path, *words)
    assert not (tmp_path / "o").exists()


def test_what_an_ar_phase_decides(whole):
    """Preset, steps, model, tokenizer and captions are its own, whatever the options say."""
    _, tokenizer, _ = load(whole / "ar_phase.pt")
    settings, state = train.settings_from(train.parse(
        ["--ar-phase", str(whole / "ar_phase.pt"), "--ar-steps", "5", "--preset", "small"])[1])
    wanted = dict(preset="tiny", ar_steps=7, wording="three", diffusion_steps=800,
                  merges=tokenizer.merges)
    assert wanted.items() <= settings.items() and state["step"] == 7


@pytest.mark.slow
def test_compile_and_the_preset_small(tmp_path, quick, monkeypatch):
    """Compiled, the same gradients; later steps amplify the rounding."""
    monkeypatch.setitem(train.PRESETS["small"], "batch_size", 4)
    found = []
    for words in (["--compile"], [], ["--preset", "small"]):
        out = tmp_path / f"o{words}"
        start(*words, "--examples", 300, "--evaluate", 0, "--ar-steps", 6, "--diffusion-steps", 4,
              "--out", out, "--device", "cpu")
        found.append([float(loss) for _, loss, *_ in losses(out).values()])
        assert len(found[-1]) == 10 and found[-1][5] < found[-1][0]
    compiled, plain, _ = found
    assert plain[:4] == pytest.approx(compiled[:4], rel=0.005)
