"""Output that ends or is elsewhere: a pipe whose reader has gone, a notebook's stream, a terminal
of few characters; Ctrl-C, and a mistake in the model."""
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


def test_a_reader_who_leaves_ends_the_script_without_a_word():
    process = subprocess.Popen(
        [sys.executable, "sample.py"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""})
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


def test_a_notebooks_stream_and_a_terminal_of_few_characters():
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    for stream in (io.StringIO(), terminal):
        with contextlib.redirect_stdout(stream):
            sample.main(["--checkpoint", str(SHIPPED), "--prior", "naïve"])
        stream.seek(0)
        assert ("caption:    na?ve" if stream is terminal else "caption:    naïve") in stream.read()


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
