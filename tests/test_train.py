"""train.py as its users run it: overfitting, resuming bit for bit, refusing what would lose work,
every file it writes."""
import csv
import json
import os
import shutil
import signal

import pytest
import torch
from conftest import decoded, hurry, refused_by
from PIL import Image

import train
from data import Batches, folder, pad_prompts, toy
from lab.checkpoint import load
from lab.evaluate import Floor
from lab.run import FILES
from lab.variants import VARIANTS, PrefixMasked
from mini_dimple import Config
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
    for i, text in enumerate(CAPTIONS):
        image = folder.load_image(pictures / f"{i}.png", model.config.image_px)[None]
        prompt = pad_prompts([toy.DESCRIBE], tokenizer, model.config.prompt_tokens)
        window = torch.full((1, model.config.window), tokenizer.mask_id)
        assert tokenizer.decode(decoded(model, image, prompt, window).response(0)) == text


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


def interrupted(monkeypatch, name, call, kill, *words):
    """A run on these words; a call of train.py's function of this name begins with `kill` -> its
    exit status."""
    calls, real = iter(range(99)), getattr(train, name)

    def killing(*rest):
        if next(calls) == call:
            kill()
        return real(*rest)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(train, name, killing)
        start(*words)
    return end.value.code


@pytest.mark.parametrize("name, call, number, saved", [
    ("schedule", 5, signal.SIGTERM, 6), ("schedule", 12, signal.SIGINT, 13),
    ("schedule", 12, None, 10), ("evaluate", 0, signal.SIGINT, 7)])
def test_stopped_and_resumed(pictures, uninterrupted, tmp_path, quick, monkeypatch, capsys, name,
                             call, number, saved):
    """By a signal: the step is finished and saved, how to go on is said; in an evaluation all steps
    are saved. None: as by a power cut, which loses the steps since last.pt was written. The rest is
    the same, bit for bit."""
    def kill():
        if number is None:
            raise SystemExit
        os.kill(os.getpid(), number)
    out, before = tmp_path / "o", signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr("lab.run.LOG_EVERY", 2)  # of what is lost, too
        status = interrupted(patch, name, call, kill, "--data", pictures, *SHORT, "--out", out)
    assert signal.getsignal(signal.SIGTERM) == before
    assert torch.load(out / "last.pt", weights_only=True)["step"] == saved
    if number:
        assert status == 128 + number
        assert f"(step {saved}); python train.py --resume --out {out}" in capsys.readouterr().err
    else:
        assert max(losses(out)) > saved
    # with that run's options: others are ignored
    start("--resume", "--out", out, "--seed", 6, "--preset", "small", "--variant", "flat")
    assert losses(out) == losses(uninterrupted) and len(losses(out)) == 23
    assert same_weights(uninterrupted / "mini_dimple.pt", out / "mini_dimple.pt")
    mine, theirs = (json.loads((path / "result.json").read_text())["ar_exact_match"]
                    for path in (out, uninterrupted))
    assert mine == theirs


def test_a_second_ctrl_c_stops_at_once(pictures, tmp_path, quick, monkeypatch, capsys):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")
    words = ["--data", pictures, *SHORT, "--out", tmp_path]
    assert interrupted(monkeypatch, "schedule", 2, twice, *words) == 130
    assert not (tmp_path / "last.pt").exists()
    capsys.readouterr()
    assert "--overwrite" in refused(capsys, *words)
    assert "last.pt" in refused(capsys, "--out", tmp_path, "--resume")


@pytest.mark.parametrize("fault, saved, said", [("nan", 10, "last.pt (step 10)"),
                                                ("disk", 7, "ar_phase.pt")])
def test_what_ends_a_run_leaves_what_was_saved(pictures, tmp_path, quick, monkeypatch, capsys,
                                               fault, saved, said):
    """A loss that is not finite, a full disk: one line, and last.pt is whole."""
    calls, real = iter(range(99)), train.diffusion_loss
    if fault == "nan":
        monkeypatch.setattr(train, "diffusion_loss", lambda *words: real(*words) * (
            float("nan") if next(calls) == 5 else 1))
    else:
        (tmp_path / "ar_phase.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(SystemExit):
        start("--data", pictures, *SHORT, "--out", tmp_path)
    assert said in capsys.readouterr().err.splitlines()[-1]
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["step"] == saved
    assert all(weight.isfinite().all() for weight in state["weights"].values())
    assert fault == "disk" or losses(tmp_path)[13][1] == "nan"


def test_pictures_that_have_changed_are_not_resumed(uninterrupted, pictures, tmp_path, capsys):
    path = shutil.copytree(pictures, tmp_path / "d")
    state = torch.load(uninterrupted / "last.pt", weights_only=True)
    state["settings"]["data"] = str(path)
    torch.save(state, tmp_path / "last.pt")
    lines = (path / "metadata.jsonl").read_text()
    (path / "metadata.jsonl").write_text(lines.replace("a red thing", "a red king"))
    assert "the data" in refused(capsys, "--resume", "--out", tmp_path)


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
                         (["--ar-phase", whole / "ar_phase.pt"], "--ar-phase"),
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


@pytest.mark.parametrize("words, named", [
    (["--ar-steps", "-1"], "--ar-steps"), (["--holdout", "nan"], "--holdout"),
    (["--ar-steps", 0, "--diffusion-steps", 0], "nothing"), (["--data", "none"], "none"),
    (["--preset", "small", "--order", "free"], "--order free"), (["--resume"], "last.pt"),
    (["--data", "long", "--holdout", 0], "metadata.jsonl:1: the caption is")])
def test_what_a_run_cannot_begin_with(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "long" / "0.png")
    line = {"file_name": "0.png", "text": "".join(map(chr, range(0x4E00, 0x4E40)))}
    (tmp_path / "long" / "metadata.jsonl").write_text(json.dumps(line))
    assert named in refused(capsys, *words)
    assert not (tmp_path / "out").exists()


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
    interrupted(monkeypatch, "schedule", 8, lambda: os.kill(os.getpid(), signal.SIGTERM), "--out",
                out, *FEW, "--ar-phase", first)
    first.unlink()
    start("--out", out, "--resume")
    wanted = {step: row for step, row in losses(whole).items() if row[0] == "diffusion"}
    assert losses(out) == wanted and len(wanted) == 16
    assert same_weights(out / "mini_dimple.pt", whole / "mini_dimple.pt")
    assert not (out / "ar_phase.pt").exists()
    mine, theirs = (json.loads((path / "result.json").read_text()) for path in (out, whole))
    for name in ("correct", "ar_correct", "iterations", "nats_above_floor", "steps"):
        assert mine[name] == theirs[name], name


def test_what_is_no_ar_phase(whole, uninterrupted, tmp_path, capsys):
    for path, words, named in (
            (whole / "mini_dimple.pt", [], "mini_dimple.pt: its last phase was 'diffusion'"),
            (whole / "ar_phase.pt", ["--diffusion-steps", 0], "nothing to train"),
            (uninterrupted / "ar_phase.pt", [], "--data")):
        assert named in refused(capsys, "--out", tmp_path / "o", "--ar-phase", path, *words)
    assert not (tmp_path / "o").exists()


def test_what_decides_of_a_preset_an_option_and_an_ar_phase(whole):
    """Preset, steps, model, tokenizer and captions are the AR phase's own, whatever options say."""
    merges = load(whole / "ar_phase.pt").tokenizer.merges
    for words, wanted in (
            ([], dict(ar_steps=400, diffusion_steps=800, examples=20_000)),
            (["--preset", "small", "--ar-steps", "0", "--examples", "9"],
             dict(ar_steps=0, diffusion_steps=6000, examples=9)),
            (["--ar-phase", str(whole / "ar_phase.pt"), "--ar-steps", "5", "--preset", "small"],
             dict(preset="tiny", ar_steps=7, wording="three", diffusion_steps=800, merges=merges))):
        settings, state = train.settings_from(train.parse(words)[1])
        assert wanted.items() <= settings.items()
    assert state["step"] == 7


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
