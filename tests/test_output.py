"""Output that ends or is elsewhere: a pipe whose reader has gone, a notebook's stream, a terminal
of few characters, Ctrl-C. For every script."""
import contextlib
import io
import os
import subprocess
import sys

import pytest
import torch

import sample
import train
from lab.__main__ import main as lab
from lab.checkpoint import ROOT, SHIPPED
from mini_dimple import Dimple

WORDS = ["--ar-steps", "7", "--diffusion-steps", "2", "--evaluate", "2"]


def environment(**changes):
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "", **changes}


def test_a_reader_who_leaves_ends_the_script_without_a_word():
    process = subprocess.Popen([sys.executable, "sample.py"], cwd=ROOT, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_a_reader_who_leaves_loses_no_step(tmp_path, quick, monkeypatch, capsys):
    def broken(*rest):
        raise BrokenPipeError
    monkeypatch.setattr(train, "finish", broken)  # where the next line is printed, after step 7
    monkeypatch.setattr(os, "dup2", lambda *ends: None)  # the test's own stdout stays
    with pytest.raises(SystemExit) as end:
        train.main(["--out", str(tmp_path), *WORDS])
    assert end.value.code == 141 and "Traceback" not in capsys.readouterr().err
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 7


def test_a_notebooks_stream():
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        sample.main(["--checkpoint", str(SHIPPED)])
    assert "caption:" in stream.getvalue()


@pytest.mark.slow
def test_a_terminal_that_cannot_show_a_name(tmp_path):
    """As in a container without a locale, where a file's name is bytes that its encoding does not
    know."""
    options = dict(cwd=tmp_path, capture_output=True, env=environment(
        LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0", PYTHONIOENCODING="ascii:strict"))
    name = "déjà".encode()
    done = subprocess.run([sys.executable, ROOT / "train.py", *WORDS, "--out", name], **options)
    assert done.returncode == 0, done.stderr
    assert b"d??j??" in done.stdout, "what the terminal cannot show"
    done = subprocess.run([sys.executable, ROOT / "sample.py", "--length", "3",
                           "--checkpoint", name + b"/mini_dimple.pt"], **options)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("main, words", [
    (sample.main, ["--checkpoint", SHIPPED]), (train.main, WORDS),
    (lab, ["rules", "--scenes", 2, "--picture", "x.png"])], ids=["sample", "train", "lab"])
def test_ctrl_c_is_no_traceback_but_a_mistake_in_the_model_is(main, words, tmp_path, quick,
                                                              monkeypatch, capsys):
    """Also a mistake of a kind that is one line where options and files make it."""
    monkeypatch.chdir(tmp_path)
    error = KeyboardInterrupt()

    def broken(*words, **options):
        raise error
    monkeypatch.setattr(Dimple, "transformer", broken)
    words = [str(word) for word in words]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 130 and "stopped" in capsys.readouterr().err
    error = ValueError("my mistake")
    with pytest.raises(ValueError, match="my mistake"):
        main([*words, *["--overwrite"] * (main is train.main)])
