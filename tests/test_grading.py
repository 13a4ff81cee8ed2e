"""A folder of rules on the board: whatever a file does, the others have their rows."""
import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import refused_by

from lab import board
from lab.__main__ import main
from lab.checkpoint import ROOT
from lab.grading import files_of

refused = refused_by(main)
RULE = "def rule(step):\n"
GOOD = "    return step.confidence > 0.9\n"


def written(folder, files):
    folder.mkdir(exist_ok=True)
    for name, code in files.items():
        (folder / f"{name}.py").write_text(code)
    return folder


def words(tmp_path, *more):
    return ["rules", "--scenes", "1", "--device", "cpu", "--only", "confident:0.9", "--picture",
            *map(str, (tmp_path / "x.png", "--json", tmp_path / "f.json", "--csv",
                       tmp_path / "f.csv", *more))]


def figures(rows, rule):
    """Of a rule, but for what differs: name and times."""
    mine = [row for row in rows if row["rule"] == str(rule) and "error" not in row]
    return {(row["block"], row["way"]): {
        key: value for key, value in row.items() if key != "rule" and key[:3] != "ms_"}
        for row in mine}


def errors(rows):
    return {row["rule"]: row["error"] for row in rows if "error" in row}


def test_which_files_a_folder_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = "b.py", "a b.py", "mine:2.py", "10.py", ".hidden.py", "__init__.py", "C.PY", "text.txt"
    for folder in ("subs", "maskgit"):
        written(tmp_path / folder, {})
        for name in names:
            (tmp_path / folder / name).write_text("")
        (tmp_path / folder / "folder.py").mkdir()
        (tmp_path / folder / "gone.py").symlink_to("nowhere")
    found = [os.path.join("subs", name)
             for name in ("10.py", "a b.py", "b.py", "gone.py", "mine:2.py")]
    assert files_of("subs") == files_of("subs/") == found
    assert files_of("maskgit") == files_of("maskgit:4") == [], "the gallery's name comes first"
    assert len(files_of("./maskgit")) == 5
    assert not any(map(files_of, ("subs/b.py", "subs/b.py:4", "none", "")))


def test_a_folder_that_cannot_be_graded_is_one_line(tmp_path, capsys):
    empty = written(tmp_path / "empty", {})
    assert "empty: the folder holds no .py file" in refused(capsys, "rules", "--rule", empty)
    (empty / "text.txt").write_text("")
    assert "holds no .py file" in refused(capsys, "rules", "--rule", empty)
    assert "empty is a folder, and takes no numbers: 4" in refused(
        capsys, "rules", "--rule", f"{empty}:4")
    assert "--timeout" in refused(capsys, "rules", "--rule", empty, "--timeout", 0)


def test_a_good_and_a_bad_file(tmp_path, capsys):
    """The good one's figures are those of the same file given by itself."""
    folder = written(tmp_path / "subs", {"jane doe": RULE + GOOD,
                                         "7": "import os\n" + RULE + "    os._exit(0)\n"})
    alone = written(tmp_path / "other", {"mine": RULE + GOOD}) / "mine.py"
    main(words(tmp_path, "--rule", folder, "--rule", alone))
    rows, (out, err) = json.loads((tmp_path / "f.json").read_text()), capsys.readouterr()
    good, bad = folder / "jane doe.py", folder / "7.py"
    assert figures(rows, good) == figures(rows, "mine") and len(figures(rows, good)) == 6
    assert errors(rows) == {str(bad): "its process ended before it was measured: exit status 0"}
    with open(tmp_path / "f.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    assert [row["rule"] for row in cells] == [row["rule"] for row in rows]
    assert {row["rule"]: row["error"] for row in cells if row["error"]} == errors(rows)
    assert f"1/2 {bad}: its process ended" in err and f"2/2 {good}: measured" in err
    table = out.partition("The files,")[2]
    assert [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")] == [
        "confident:0.9", str(good), str(bad)]
    assert all(out.count(f"\n| `{path}` ") == 4 for path in (good, bad)), "in each block, and here"


def test_the_summary_begins_with_the_rightest_and_of_these_the_fastest():
    def rows(name, right, passes):
        return [dict(rule=name, block=block, way=way, right=right, passes=passes, won=1, lost=2)
                for block in board.BLOCKS for way in board.WAYS]
    files = ["slow", "bad", "a|b", "low"]
    found = board.summary(files, [*rows("low", 0.5, 3), *rows("slow", 1.0, 9), *rows("a|b", 1.0, 4),
                                  *rows("maskgit:1", 1.0, 48)], {"bad": "why\n|"})
    lines = found.splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == ["a\\|b", "slow", "low", "bad"]
    assert lines[0] == ("| `a\\|b` | 100.0% / 100.0% | 100.0% / 100.0% | 100.0% / 100.0% | "
                        "4.00 / 4.00 / 4.00 | 1, 2 / 1, 2 / 1, 2 |")
    assert lines[3].startswith("| `bad` | why \\| | ")
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_a_name_that_is_no_text_does_not_stop_the_csv(tmp_path):
    board.write_csv(tmp_path / "f.csv", [dict(rule=os.fsdecode(b"d\xe9.py"), error="x,\ny")])
    with open(tmp_path / "f.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [dict(rule="d?.py", error="x,\ny")]
    board.write_csv(None, [])


# ---------------------------------------------------------------- whatever they do

FINE = {  # as good as GOOD, whatever else they do
    "prints": "import sys\n" + RULE + "    print('x' * 10**6)\n    sys.stderr.write('y' * 10**6)\n",
    "reads": "import sys\n" + RULE + "    sys.stdin.read()\n",
    "torch": "import torch\ntorch.set_num_threads(3)\ntorch.set_default_dtype(torch.float64)\n"
             "torch.manual_seed(5)\n" + RULE,
    "writes": RULE + "    step.probs.fill_(0), step.logits.fill_(0), step.given.fill_(True)\n",
    "moves": "import os\nos.chdir('/')\n" + RULE,
    "vanishes": "from pathlib import Path\nPath(__file__).unlink()\n" + RULE,
    "threads": "import threading, time\n"
               "threading.Thread(target=lambda: time.sleep(999)).start()\n" + RULE,
    "leaves": "import subprocess\nfrom pathlib import Path\n"
              "left = subprocess.Popen(['sleep', '999'])\n"
              "Path(__file__).with_suffix('.pid').write_text(str(left.pid))\n" + RULE,
    "late": "from data import toy\ntoy.examples = None\n" + RULE,  # the scenes are drawn already
    "confident": RULE, "maskgit:1": RULE, "a|b`c": RULE,
}
TIMEOUT_S = 45  # a rule that goes to the limit takes 6, on a busy machine more than 20
WRONG = {  # what is said of them
    "syntax": ("def rule(step", "fails with SyntaxError"),
    "null": ("a\0b", "fails with SyntaxError"),
    "empty": ("", "defines no function `rule`"),
    "numbers": ("def rule(step, k):\n" + GOOD, "`rule` takes k"),
    "imports": ("1 / 0", "fails with ZeroDivisionError"),
    "third": (RULE + "    if step.iteration == 2:\n        return 1 / 0\n" + GOOD,
              "line 3, `return 1 / 0`: ZeroDivisionError"),
    "exits": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "leaves_at_once": ("import os\n" + RULE + "    os._exit(7)\n", "measured: exit status 7"),
    "interrupts": (RULE + "    raise KeyboardInterrupt\n", "KeyboardInterrupt"),
    "crashes": ("import ctypes\n" + RULE + "    ctypes.string_at(0)\n", "signal 11"),
    "kills": ("import os\n" + RULE + "    os.killpg(0, 15)\n", "signal 15"),
    "loops": ("while True: pass", f"not done after {TIMEOUT_S} s"),
    "ignores": ("import signal, time\nfor one in (1, 2, 15):\n    signal.signal(one, "
                "signal.SIG_IGN)\n" + RULE + "    time.sleep(999)\n",
                f"not done after {TIMEOUT_S} s"),
    "asks": (RULE + "    input()\n", "EOFError"),
    "shape": (RULE + "    return step.confidence[:, 1:] > 0.9\n", "it must return positions"),
    "recurses": (RULE + "    return rule(step)\n", "RecursionError"),
    "tells": (RULE + "    raise ValueError('x\\n' * 10**7)\n", "ValueError: x x x"),
    "patches": ("import mini_dimple\nmini_dimple.Step.commit = None\n" + RULE + GOOD, "TypeError"),
    "breaks": ("import builtins\nbuiltins.open = None\n" + RULE + GOOD, "exit status 1"),
}
if sys.platform == "linux":  # elsewhere memory has no limit
    WRONG["memory"] = ("import torch\n" + RULE + "    torch.empty(15 * 10**8)\n" + GOOD,
                       "can't allocate memory")


@pytest.mark.slow
def test_whatever_they_do_the_others_have_their_rows(tmp_path, capsys):
    folder = written(tmp_path / "subs", {"good": RULE + GOOD})
    written(folder, {name: code + GOOD for name, code in FINE.items()})
    written(folder, {name: code for name, (code, _) in WRONG.items()})
    written(folder, {"stays": RULE + "    return step.tokens\n"})
    main(words(tmp_path, "--rule", folder, "--timeout", TIMEOUT_S))
    rows, out = json.loads((tmp_path / "f.json").read_text()), capsys.readouterr().out
    said, good = errors(rows), figures(rows, folder / "good.py")
    for name in FINE:
        assert figures(rows, folder / f"{name}.py") == good, name
    for name, (_, wanted) in WRONG.items():
        assert wanted in said[str(folder / f"{name}.py")], name
    assert len(said) == len(WRONG) and max(map(len, said.values())) <= 1000
    stays = figures(rows, folder / "stays.py")
    assert all(row["passes"] == 96 and row["right"] == 0 for row in stays.values()), "to the limit"
    left = int((folder / "leaves.pid").read_text())
    assert not running(left), "what a rule has started ends with it"
    lines = [line for line in out.splitlines() if line.startswith(f"| `{folder}")]
    assert len(lines) == 4 * len(list(folder.glob("*.py"))) + 4, "and the one that is gone"


def running(pid):
    """Is the process there, and not just its entry until somebody asks for its end?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return not status.stdout.startswith("Z")


@pytest.mark.slow
def test_at_ctrl_c_what_is_graded_is_kept_and_nothing_goes_on(tmp_path):
    folder, pid = written(tmp_path / "subs", {"a": RULE + GOOD}), tmp_path / "pid"
    written(folder, {"b": "import os\nfrom pathlib import Path\n"
                          f"Path({str(pid)!r}).write_text(str(os.getpid()))\nwhile True: pass"})
    process = subprocess.Popen([sys.executable, "-m", "lab", *words(tmp_path, "--rule", folder)],
                               cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not pid.exists() or not pid.read_text():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1].decode()
    assert process.returncode == 130 and "stopped" in error and "Traceback" not in error
    with open(tmp_path / "f.csv", newline="") as file:
        assert [row["rule"] for row in csv.DictReader(file)].count(str(folder / "a.py")) == 6
    assert not running(int(pid.read_text()))
