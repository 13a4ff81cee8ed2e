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

from lab.__main__ import main
from lab.checkpoint import ROOT
from lab.grading import NotDone, apart, files_of

refused = refused_by(main)
RULE = "def rule(step):\n"
GOOD = "    return step.confidence > 0.9\n"


def written(folder, files):
    folder.mkdir(exist_ok=True)
    for name, code in files.items():
        (folder / f"{name}.py").write_text(code)
    return folder


def words(tmp_path, *more):
    return ["rules", "--scenes", "1", "--samples", "4", "--device", "cpu", "--only",
            "confident:0.9", *map(str, ("--picture", tmp_path / "x.png", "--json",
                                        tmp_path / "f.json", "--csv", tmp_path / "f.csv", *more))]


def figures(rows, rule):
    """Of a rule, but for what differs: name and times."""
    mine = [row for row in rows if row["rule"] == str(rule) and "error" not in row]
    return {(row["block"], row["way"]): {
        key: value for key, value in row.items() if key != "rule" and key[:3] != "ms_"}
        for row in mine}


# ---------------------------------------------------------------- one process, one time limit

def endless(say):
    say("half way")
    while True:
        pass


def leaves(say):
    print("nobody reads this", flush=True)
    say("at the start")
    os._exit(7)


def test_a_process_of_its_own(capfd):
    with pytest.raises(NotDone, match="exit code 7: at the start"):
        apart(leaves, seconds=60)
    with pytest.raises(NotDone, match="after 1 s: half way; in line [0-9]+, `"):
        apart(endless, seconds=1, file=__file__)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- a folder

def test_which_files_a_folder_has(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("subs", "maskgit", "empty"):
        (tmp_path / folder).mkdir()
    for name in ("b.py", "a b.py", ".hidden.py", "__init__.py", "text.txt"):
        (tmp_path / "subs" / name).write_text("")
    assert files_of("subs") == [os.path.join("subs", name) for name in ("a b.py", "b.py")]
    assert files_of("maskgit") == [], "the gallery's name comes first"
    assert not any(map(files_of, ("subs/b.py", "subs/b.py:4", "none")))
    assert "empty" in refused(capsys, "rules", "--rule", "empty")


FILES = {  # what they do -> what is said of them; None: as good as GOOD
    "prints": (RULE + "    print('x' * 10**6)\n" + GOOD, None),
    "leaves": ("import os\n" + RULE + "    os._exit(7)\n", "exit code 7: on exact, greedy"),
    "syntax": ("def rule(step", "SyntaxError"),
    "loops": (RULE + "    while True:\n        pass\n", "iteration 1 of at most 96; in line"),
}


@pytest.mark.slow
def test_whatever_they_do_the_others_have_their_rows(tmp_path, capsys):
    """And the good one's figures are those of the same file given by itself."""
    folder = written(tmp_path / "subs", {name: code for name, (code, _) in FILES.items()})
    written(folder, {"good": RULE + GOOD, "stays": RULE + "    return step.tokens\n"})
    alone = written(tmp_path / "other", {"mine": RULE + GOOD}) / "mine.py"
    main(words(tmp_path, "--rule", folder, "--rule", alone, "--timeout", 25))
    rows, said = json.loads((tmp_path / "f.json").read_text()), capsys.readouterr()
    errors = {row["rule"]: row["error"] for row in rows if "error" in row}
    good = figures(rows, alone)
    assert len(good) == 6 and figures(rows, folder / "good.py") == good
    for name, (_, wanted) in FILES.items():
        path = str(folder / f"{name}.py")
        assert wanted in errors[path] if wanted else figures(rows, path) == good, name
        assert f"{path}: {errors.get(path, 'measured')}" in said.err
    stays = figures(rows, folder / "stays.py")
    assert all(row["passes"] == 96 and row["right"] == 0 for row in stays.values()), "to the limit"
    table = said.out.split("\n\n")[1].splitlines()  # yours: the best first, those that failed last
    order = [next(name for name in (*FILES, "good", "stays", "mine") if f"{name}.py" in line)
             for line in table[2:]]
    assert order.index("good") < order.index("stays") < order.index("loops")
    assert len(order) == len(FILES) + 3


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
    assert process.returncode == 130 and "Traceback" not in error
    with open(tmp_path / "f.csv", newline="") as file:
        assert [row["rule"] for row in csv.DictReader(file)].count(str(folder / "a.py")) == 6
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
