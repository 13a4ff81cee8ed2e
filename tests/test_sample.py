"""sample.py: what it prints, and one clear line for every mistake."""
import re

import pytest
from conftest import refused_by, untrained
from PIL import Image

import sample
from data import toy
from lab.checkpoint import SHIPPED, load, save
from mini_dimple import Config
from tokenizer import Tokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An untrained checkpoint of each phase, and one of own pictures: what is printed does not
    depend on training."""
    folder = tmp_path_factory.mktemp("checkpoints")
    split = toy.examples(toy.TOYS["tiny"], 300, 0, held_out=False)
    model, tokenizer = untrained(split.texts + split.prompts)
    for name, phase, trained_on in (("d", "diffusion", "tiny"), ("ar", "ar", "tiny"),
                                    ("own", "diffusion", "pictures")):
        origin = dict(phase=phase, trained_on=trained_on, prompt=toy.DESCRIBE)
        save(folder / f"{name}.pt", model, tokenizer, origin)
    return folder


def shown(capsys, *words):
    sample.main([str(word) for word in words])
    return capsys.readouterr().out


refused = refused_by(sample.main)


def test_caption_trace_and_count(trained, capsys):
    words = ["--checkpoint", trained / "d.pt", "--seed", 3, "--length", 12]
    out = shown(capsys, *words)
    assert f"checkpoint: {trained / 'd.pt'}" in out and "caption:" in out and "grade:" in out
    lines = re.findall(r"^ *(\d+)  (.*)$", out, re.M)
    passes = int(re.search(r"(\d+) passes for", out)[1])
    assert [int(number) for number, _ in lines] == list(range(1, passes + 1))
    assert all("[" in line for _, line in lines)
    assert "_" in lines[0][1] and not re.search(r"(^| )_", lines[-1][1])
    assert out == shown(capsys, *words), "a seed repeats"


def test_the_grade_says_what_is_wrong():
    board = toy.TOYS["tiny"]
    split = toy.examples(board, 1, 5, held_out=True, instruction=toy.DESCRIBE)
    text, = split.texts
    for caption, ended, prompt, worth in (
            (text, True, toy.DESCRIBE, "fully right"), ("we see", True, toy.DESCRIBE, "opening"),
            (text[:20], False, toy.DESCRIBE, "no end"),
            ("nine shapes", True, toy.COUNT, "wrong number")):
        found = sample.grade(caption, ended, prompt, split, board)
        assert worth in found and (caption == text) != (text in found)
    assert sample.grade("red", True, "which colour?", split, board) is None


def test_without_checkpoint_it_uses_out_then_the_shipped_weights(
        trained, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"checkpoint: {SHIPPED}" in shown(capsys, "--length", 5)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mini_dimple.pt").write_bytes((trained / "d.pt").read_bytes())
    assert "checkpoint: out/mini_dimple.pt" in shown(capsys, "--length", 5)


def test_several_rules_and_their_picture(trained, capsys, tmp_path):
    (tmp_path / "mine.py").write_text(TAKES_BACK)
    words = ["--checkpoint", trained / "d.pt", "--seed", 3, "--length", 12, "--prior", "a _ _ at"]
    rules = ["--rule", "confident:0.9"], ["--rule", tmp_path / "mine.py"]
    both = [*words, *rules[0], *rules[1], "--picture"]
    alone = [shown(capsys, *words, *rule) for rule in rules]
    out = shown(capsys, *both, tmp_path / "d.gif")
    assert all(one.split("rule:")[1] in out for one in alone), "each decodes as it does alone"
    with Image.open(tmp_path / "d.gif") as animation:
        assert animation.n_frames == 1 + max(len(re.findall(r"^ *\d+  ", one, re.M))
                                             for one in alone)
    shown(capsys, *both, tmp_path / "new" / "d.HTML")
    assert (tmp_path / "new" / "d.HTML").exists()
    assert "d.png" in refused(capsys, *both, tmp_path / "d.png")
    assert "mine.py" in refused(capsys, *both, tmp_path / "mine.py" / "d.gif")


TAKES_BACK = """
def rule(step):
    if step.iteration in (1, 3):
        return step.tokens.masked_fill(~step.given, step.mask_id)
    return step.commit(step.masked if step.iteration == 4 else step.confidence > 1)
"""
GROWS_AND_SHRINKS = """
import torch.nn.functional as F
def rule(step):
    if step.iteration == 0:
        return F.pad(step.tokens, (0, 3), value=step.mask_id)
    return F.pad(step.commit(step.confidence > 1), (0, -2 * (step.iteration == 2)))
"""


def test_what_a_rule_does_is_said(trained, capsys, tmp_path):
    """What it takes back is marked; windows may grow and shrink; the limit fills the rest."""
    def decoded(code):
        (tmp_path / "mine.py").write_text(code)
        out = shown(capsys, "--checkpoint", trained / "d.pt", "--seed", 3, "--length", 4,
                    "--rule", tmp_path / "mine.py")
        return out, re.findall(r"^ *\d+  (.*)$", out, re.M)
    out, lines = decoded(TAKES_BACK)
    assert [line.count("[_]") for line in lines] == [0, 1, 0, 1, 0] and "5 passes for" in out
    assert [line.count("[") for line in lines[:4]] == [1, 1, 1, 1], "nothing else has changed"
    _, lines = decoded(GROWS_AND_SHRINKS)
    cells = [re.sub(r"[][]", "", line).split() for line in lines]
    lengths = [sum(int(cell.partition("*")[2] or 1) for cell in line) for line in cells]
    assert lengths[:3] == [7, 7, 5] and lengths[-1] == 5
    for number, hinted in (("nan", True), ("0", False)):
        out, _ = decoded(f"def rule(step): return step.confidence > float('{number}')")
        assert ("hint: the rule named no position" in out) == hinted
    out, _ = decoded("def rule(step): return step.tokens")
    assert "96 passes for" in out and "its last one committed 4 tokens" in out
    out, _ = decoded("def rule(step): return step.tokens * 0 + step.eos_id")
    assert "1 passes for 1 response tokens" in out


def test_a_look_by_name_and_from_a_file_and_files_that_fail(trained, capsys, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("from mini_dimple import full as look")
    words = ["--checkpoint", trained / "d.pt", "--seed", 3, "--length", 12,
             "--rule", "confident:0.9", "--rule", "maskgit:3", "--look"]
    assert shown(capsys, *words, "full") == shown(capsys, *words, mine), "one look for each rule"
    for kind, argument in (("look", "model, images, prompt"), ("rule", "step")):
        mine.write_text(f"def {kind}({argument}):\n    return 1 / 0")
        err = refused(capsys, *words[:6], f"--{kind}", mine)
        assert "line 2, `return 1 / 0`: ZeroDivisionError" in err and "mine" in err


def test_a_prior_is_kept_to_the_letter(trained, capsys):
    prior = "there is a naïve 日本 <mask>, and _ _ <eos> at the left"
    for heat in (0, 1.5):
        out = shown(capsys, "--checkpoint", trained / "d.pt", "--seed", 3, "--prior", prior,
                    "--temperature", heat)
        caption = re.search(r"caption:    (.*?)\n(?:grade|\n)", out, re.S)[1]
        first, last = prior.split(" _ _ ")
        assert caption.startswith(first) and f" {last}" in caption


CONFIG = Config(vocab_size=400, eos_id=398, mask_id=399)


def test_windows_from_priors():
    tokenizer = Tokenizer.train(["a red circle at the top left"] * 3)
    M, ids = tokenizer.mask_id, tokenizer.encode
    for prior, window in (("", [M, M, M]), ("a _ circle", [*ids("a"), M, *ids(" circle"), M]),
                          ("_ _ at", [M, M, *ids(" at")]), ("__", [M, M]), ("a red", ids("a red"))):
        assert sample.make_window(prior, len(window), CONFIG, tokenizer).tolist() == [window]
    with pytest.raises(ValueError, match="4 tokens of the --prior"):
        sample.make_window("a red circle _", 3, CONFIG, tokenizer)


def test_an_ar_checkpoint_decodes_left_to_right(trained, capsys):
    words = ["--checkpoint", trained / "ar.pt", "--length", 6]
    assert "1.0 tokens per pass" in shown(capsys, *words, "--prompt", toy.COUNT)
    for flag in (["--rule", "confident:0.5"], ["--prior", "a"], ["--temperature", "1"]):
        assert "AR phase" in refused(capsys, *words, *flag)


@pytest.mark.parametrize("words, named", [
    (["--rule", "other"], "--rule other"), (["--length", "100000000"], "--length"),
    (["--length", "2", "--prior", "a red circle"], "--prior"), (["--temperature", "inf"], "inf"),
    (["--prompt", "what is it?"], "--prompt"), (["--prompt", ""], "--prompt"),
    (["--image", __file__], __file__), (["--checkpoint", "none.pt"], "none.pt")])
def test_bad_options_and_files(trained, capsys, words, named):
    assert named in refused(capsys, "--checkpoint", trained / "d.pt", *words)


def test_weights_say_what_they_have_not_seen(trained, capsys, tmp_path):
    """Those of the toy warn of photographs, all of a window longer than any in training; those of
    your own pictures need one."""
    Image.new("RGB", (60, 40), "navy").save(tmp_path / "photo.jpg")
    photo, longest = ["--image", tmp_path / "photo.jpg"], load(trained / "d.pt").model.config.window
    for name, words, length, named in (
            ("d", photo, 6, "docs/pictures.md"), ("d", [], longest, None),
            ("d", [], longest + 1, f"--length {longest + 1}"), ("own", photo, 6, None)):
        words = [*words, "--length", length, "--seed", 1]
        sample.main([str(word) for word in ["--checkpoint", trained / f"{name}.pt", *words]])
        out, err = capsys.readouterr()
        assert err.count("\n") == (named is not None) and (named or "") in err
        assert ("photo.jpg" in out) == (photo[0] in words) != ("grade" in out)
    assert "--image" in refused(capsys, "--checkpoint", trained / "own.pt")
