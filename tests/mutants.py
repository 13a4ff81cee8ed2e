"""Forty single faults, one at a time: do the tests notice?

    python tests/mutants.py [--jobs N] [--only I ...]

Each mutant is a copy of the tracked files with one fault in it. There the default suite runs up to
its first failure, the test files that are most likely to fail first. The line of each mutant says
which test killed it, so that a real kill can be told from a file that no longer imports; a mutant
that survives is a fault that no test sees. A kill takes seconds, a survivor the whole suite.
"""
import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 1500  # seconds for a mutant: several times the whole suite; one that hangs is killed, too
CORE, TOKENIZER, BATCHES = "mini_dimple.py", "tokenizer.py", "data/__init__.py"
TOY, FOLDER, EXACT = "data/toy.py", "data/folder.py", "data/exact.py"
FIRST = {CORE: ["model", "losses", "decode"], TOKENIZER: ["tokenizer"], BATCHES: ["train"],
         TOY: ["toy", "grading"], FOLDER: ["folder"], EXACT: ["exact"]}
MUTANTS = [  # (file, old text, which occurs once, new text): no lines more or fewer
    (CORE, "b * cos + a * sin", "b * cos - a * sin"),
    (CORE, "is_causal=causal and past is None", "is_causal=causal"),
    (CORE, "/ 127.5 - 1", "/ 127.5"),
    (CORE, ".transpose(2, 3).reshape", ".reshape"),
    (CORE, "self.projector(self.vit(images)), self.embedding(prompt)]",
     "self.embedding(prompt), self.projector(self.vit(images))]"),
    (CORE, "-response.shape[1] - 1:-1]", "-response.shape[1]:]"),
    (CORE, "eos.cumsum(1) - eos == 0", "eos.cumsum(1) == 0"),
    (CORE, "torch.rand(B, device", "torch.rand(1, device"),
    (CORE, "response.masked_fill(masked", "response.masked_fill_(masked"),
    (CORE, "/ t).mean() / nll.shape[1]", "/ t).mean() / nll.shape[0]"),
    (CORE, "noisy, causal=False)", "noisy, causal=True)"),
    (CORE, "(steps - warmup + 1)", "(steps - warmup)"),
    (CORE, "kept = prefix.shape[1] - 1", "kept = prefix.shape[1]"),
    (CORE, "torch.float32), copy=True)", "torch.float32))"),
    (CORE, "shifted / temperature", "shifted * temperature"),
    (CORE, "confidence.masked_fill(~self.masked, -torch.inf).argmax", "confidence.argmax"),
    (CORE, "torch.where(keep, tokens, new)", "torch.where(~unfinished[:, None], tokens, new)"),
    (CORE, "torch.where(keep, tokens, new), given", "torch.where(given, tokens, new), given"),
    (CORE, "tokens, longer, value=config.eos_id", "tokens, longer, value=config.mask_id"),
    (CORE, ".sum().item() + 1", ".sum().item()"),
    (CORE, "position >= after", "position > after"),
    (CORE, "unfinished * (looks - looks_before)", "(looks - looks_before)"),
    (CORE, "looks >= most", "looks > most"),
    (CORE, ".masked_fill(finished, eos_id)", ""),
    (BATCHES, "[[tokenizer.eos_id] * (length - len(i)) + i for",
     "[i + [tokenizer.eos_id] * (length - len(i)) for"),
    (BATCHES, "len(i) + 1 for", "len(i) for"),
    (BATCHES, "* 1_000_003 + epoch", "* 1_000_003"),
    (BATCHES, "self.window + 1, ()", "self.window, ()"),
    (TOY, "sorted(map(tuple, scene))", "list(map(tuple, scene))"),
    (TOY, "thing.column * CELL_PX, thing.row", "thing.row * CELL_PX, thing.column"),
    (TOY, "set(stated) <= set(scene)", "set(stated) & set(scene)"),
    (EXACT, "[(share, [tokenizer", "[(1 / len(odds), [tokenizer"),
    (EXACT, "evidence.sum(2).softmax(1)", "evidence.mean(2).softmax(1)"),
    (FOLDER, "path.read_bytes(), holdout", "str(path).encode(), holdout"),
    (FOLDER, "length >= window", "length > window"),
    (TOKENIZER, "(pairs[pair], pair))", "pairs[pair])"),
    (TOKENIZER, "pairs[pair] -= times[i]", "pairs[pair] -= 1"),
    (TOKENIZER, "self.rank.get(pair, self.vocab_size)", "self.rank.get(pair, 0)"),
    (TOKENIZER, 'raw.decode("utf-8", "replace")', 'raw.decode("utf-8", "ignore")'),
    (TOKENIZER, "vocab_size - 258", "vocab_size - 256"),
]


def start(file, old, new, folder):
    """The tests of a copy with this fault in it, as a running process that writes to `output`."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / file).write_text((ROOT / file).read_text("utf-8").replace(old, new), "utf-8")
    # file by file: beside their folder, pytest would run them in the folder's order
    tests = [f"tests/test_{name}.py" for name in FIRST[file]]
    tests += sorted(f"tests/{path.name}" for path in (folder / "tests").glob("test_*.py"))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    with open(folder / "output", "w") as output:
        return subprocess.Popen(
            [*command, *dict.fromkeys(tests)], cwd=folder, stdout=output, stderr=output,
            env={**os.environ, "PYTHONPATH": str(folder)}, start_new_session=True)


def stop(process):
    """End it, and whatever its tests have started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def verdict(process, output):
    """What the tests of a mutant say, ended or (still running) at the limit."""
    if process.poll() is None:
        return f"killed by the limit of {LIMIT} s"
    lines = output.read_text("utf-8", "replace").splitlines() or ["no output"]
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))] or lines
    return f"killed by {failed[-1].removeprefix('FAILED ')}" if process.returncode else "SURVIVED"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="mutants tested at once")
    parser.add_argument("--only", type=int, nargs="+", metavar="I", help="these mutants, from 1")
    args = parser.parse_args()
    # a shell's job in the background ignores Ctrl-C; so would the tests, and fail
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, (file, old, _) in enumerate(MUTANTS, 1):
        if (count := (ROOT / file).read_text("utf-8").count(old)) != 1:
            sys.exit(f"mutant {number}: {old!r} occurs {count} times in {file}, not once")
    todo, running, verdicts = args.only or list(range(1, len(MUTANTS) + 1)), {}, []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        try:
            while todo or running:
                while todo and len(running) < args.jobs:
                    number, folder = todo[0], Path(work, str(todo.pop(0)))
                    process, end = start(*MUTANTS[number - 1], folder), time.monotonic() + LIMIT
                    running[number] = process, folder / "output", end
                time.sleep(0.5)
                for number, (process, output, end) in list(running.items()):
                    if process.poll() is not None or time.monotonic() > end:
                        file, old, new = MUTANTS[number - 1]
                        verdicts.append(verdict(process, output))
                        print(f"{number} {file}: {old} -> {new}: {verdicts[-1]}", flush=True)
                        stop(running.pop(number)[0])
        finally:
            for process, *_ in running.values():
                stop(process)
    print(f"{len(verdicts) - verdicts.count('SURVIVED')} of {len(verdicts)} killed")


if __name__ == "__main__":
    main()
