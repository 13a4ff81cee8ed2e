"""Output that ends or is elsewhere: a pipe whose reader has gone, a notebook's stream, a terminal
of few characters, a full disk, Ctrl-C. For every script."""
import contextlib
import io
import os
import signal
import subprocess
import sys

import pytest
import torch

import sample
import train
from lab.__main__ import main as lab
from lab.checkpoint import ROOT, SHIPPED
from mini_dimple import Dimple

QUICK = ["--ar-steps", "7", "--diffusion-steps", "16", "--evaluate", "2"]
COMMANDS = [["rules"], ["speed", "decode"], ["speed", "training"], ["claims"]]
FEW = ("import lab.run, train; lab.run.SAVE_EVERY = 5; "
       "lab.run.Floor.__init__.__defaults__ = (20,); "
       "train.PRESETS['tiny'].update(examples=100, batch_size=8); train.main()")
RULES = ["-m", "lab", "rules"]
SCRIPTS = {  # each prints more than one line
    "sample": [ROOT / "sample.py", "--seed", "1"],
    "train": ["-c", FEW, *QUICK, "--out", "o"],
    "lab": [*RULES, "--scenes", "1", "--only", "confident:0.9", "--picture", "x.png"],
    "help": [*RULES, "--help"],
}


@pytest.fixture
def quick(monkeypatch):
    """Few examples, many checkpoints."""
    monkeypatch.setattr("lab.run.SAVE_EVERY", 5)
    monkeypatch.setitem(train.PRESETS["tiny"], "examples", 100)
    monkeypatch.setitem(train.PRESETS["tiny"], "batch_size", 8)


def environment(**changes):
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "", **changes}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_reader_who_leaves_ends_the_script_without_a_word(name, tmp_path):
    process = subprocess.Popen([sys.executable, *SCRIPTS[name]], cwd=tmp_path, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait() == 128 + signal.SIGPIPE
    assert "Traceback" not in err and "Exception ignored" not in err and "Broken" not in err
    if name == "train":
        last = tmp_path / "o" / "last.pt"
        assert not last.exists(), "it ends with its first line, before the first step"


def test_a_reader_who_leaves_later_loses_no_step(tmp_path, quick, monkeypatch, capsys):
    def broken(*rest):
        raise BrokenPipeError
    with monkeypatch.context() as changed:
        changed.setattr(train, "finish", broken)  # where the next line is printed, after step 7
        changed.setattr(os, "dup2", lambda *ends: None)  # the test's own stdout stays
        with pytest.raises(SystemExit) as end:
            train.main(["--out", str(tmp_path / "o"), *QUICK])
    assert end.value.code == 128 + signal.SIGPIPE and "Traceback" not in capsys.readouterr().err
    assert torch.load(tmp_path / "o" / "last.pt", weights_only=True)["step"] == 7


@pytest.mark.slow
def test_every_script_writes_into_a_notebooks_stream(tmp_path, quick):
    def said(main, *words):
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            main([str(word) for word in words])
        return stream.getvalue()
    assert "caption:" in said(sample.main, "--checkpoint", SHIPPED, "--seed", 1)
    assert "training pictures" in said(train.main, "--out", tmp_path / "o", *QUICK)
    for command in COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as stream, pytest.raises(SystemExit) as end:
            lab([*command, "--help"])
        assert end.value.code == 0 and "--device" in stream.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", pytest.param("utf-8", marks=pytest.mark.slow)])
def test_a_terminal_that_cannot_show_a_name_or_a_caption(encoding, tmp_path):
    """As in a container without a locale, where a file's name is bytes that its encoding does not
    know."""
    options = dict(cwd=tmp_path, capture_output=True, env=environment(
        LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", PYTHONIOENCODING=f"{encoding}:strict"))
    name = "déjà".encode()
    done = subprocess.run([sys.executable, "-c", FEW, *QUICK, "--out", name], **options)
    assert done.returncode == 0, done.stderr
    assert b"d??j??" in done.stdout, "what the terminal cannot show"
    done = subprocess.run([sys.executable, ROOT / "sample.py", "--length", "3",
                           "--checkpoint", name + b"/mini_dimple.pt"], **options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "déjà" / "result.json").exists()


# ---------------------------------------------------------------- a full disk, Ctrl-C

def failed(capsys, *words):
    """The one line with which train.py ends, exit status 1."""
    with pytest.raises(SystemExit) as end:
        train.main([str(word) for word in words])
    err = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 1
    return err


@pytest.mark.slow
@pytest.mark.parametrize("name, said", [
    ("log.csv", "no checkpoint yet"), ("last.pt", "no checkpoint yet"),
    ("ar_phase.pt", "last.pt (step 7)"), ("samples.png", "last.pt (step 23)"),
    ("mini_dimple.pt", "last.pt (step 23)"), ("result.json", "last.pt (step 23)")])
def test_a_full_disk_is_one_line_with_the_last_good_checkpoint(name, said, tmp_path, quick, capsys):
    out = tmp_path / "o"
    out.mkdir()
    (out / f"{name}.tmp").symlink_to("/dev/full")
    err = failed(capsys, "--out", out, *QUICK)
    assert "No space left on device" in err and name in err and said in err, err
    assert not (out / name).exists() and not (out / f"{name}.tmp").exists(), "nothing half-written"
    if "step" in said:
        train.main(["--resume", "--out", str(out)])
        assert (out / "result.json").exists(), "and once there is room, it goes on"


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_ctrl_c_does_afterwards_what_it_did(tmp_path, quick, monkeypatch, handler):
    """It stops the run (test_train.py) unless it is ignored, as under `nohup ... &`."""
    during, real = [], train.ar_loss

    def looking(*words):
        during.append(signal.getsignal(signal.SIGINT))
        return real(*words)
    monkeypatch.setattr(train, "ar_loss", looking)
    before = signal.signal(signal.SIGINT, handler)
    try:
        train.main(["--out", str(tmp_path / "o"), *QUICK])
        assert signal.getsignal(signal.SIGINT) == handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert {one == handler for one in during} == {handler == signal.SIG_IGN}


def test_ctrl_c_while_the_last_step_is_saved_is_not_lost(tmp_path, quick, monkeypatch):
    real = train.Run.save

    def pressed(run):
        real(run)
        if run.step == 7:
            os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(train.Run, "save", pressed)
    with pytest.raises(SystemExit) as end:
        train.main(["--out", str(tmp_path / "o"), *QUICK])
    assert end.value.code == 130
    assert torch.load(tmp_path / "o" / "last.pt", weights_only=True)["step"] == 7


def test_a_second_ctrl_c_stops_at_once(tmp_path, quick, monkeypatch):
    calls, real = [], train.ar_loss

    def pressed(*words):
        calls.append(words)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("not reached")
        return real(*words)
    monkeypatch.setattr(train, "ar_loss", pressed)
    with pytest.raises(SystemExit) as end:
        train.main(["--out", str(tmp_path / "o"), *QUICK])
    assert end.value.code == 130 and not (tmp_path / "o" / "last.pt").exists()


def test_ctrl_c_in_the_other_scripts_is_no_traceback(tmp_path, monkeypatch, capsys):
    def pressed(*words, **options):
        raise KeyboardInterrupt
    monkeypatch.setattr(Dimple, "logits", pressed)
    for main, words in ((sample.main, ["--checkpoint", SHIPPED, "--seed", 1]),
                        (lab, ["rules", "--scenes", 2, "--picture", tmp_path / "x.png"])):
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        assert end.value.code == 130 and "stopped" in capsys.readouterr().err


def test_what_only_posix_has_is_not_needed(tmp_path):
    """As on Windows, as far as it can be tried elsewhere: modules and signals that it lacks."""
    lines = """
import os, signal, sys
sys.modules.update(fcntl=None, resource=None, pwd=None, grp=None, termios=None)
for name in ("SIGPIPE", "SIGKILL", "SIGHUP"):
    delattr(signal, name)
for name in ("killpg", "fork", "setsid"):
    delattr(os, name)
import lab.__main__, sample, train
train.main(["--out", sys.argv[1], "--examples", "100", "--evaluate", "0", "--ar-steps", "1",
            "--diffusion-steps", "0"])
try:
    raise BrokenPipeError
except BrokenPipeError as error:
    lab.shell.script(lambda argv: (_ for _ in ()).throw(error))()
"""
    run = subprocess.run([sys.executable, "-c", lines, tmp_path / "out"], env=environment(),
                         capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 141 and "Traceback" not in run.stderr, run.stderr
    assert (tmp_path / "out" / "result.json").exists()
