"""Sixty single faults, one at a time: do the tests notice?

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
         TOY: ["toy", "grading"], FOLDER: ["folder"], EXACT: ["exact"],
         "rules": ["gallery", "rules"], "lab": ["lab", "exact"], "lab/trace.py": ["viewer"],
         "lab/training.py": ["optimizers"], "lab/variants.py": ["losses", "lab"]}
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
    (CORE, "/ t).mean() / response.shape[1]", "/ t).mean() / response.shape[0]"),
    (CORE, "noisy, causal=False)", "noisy, causal=True)"),
    (CORE, "(steps - warmup + 1)", "(steps - warmup)"),
    (CORE, "kept = prefix.shape[1] - 1", "kept = prefix.shape[1]"),
    (CORE, "torch.float32), copy=True)", "torch.float32))"),
    (CORE, "shifted / temperature", "shifted * temperature"),
    (CORE, "confidence.masked_fill(~self.masked, -torch.inf).argmax", "confidence.argmax"),
    (CORE, "torch.where(keep, tokens, new)", "torch.where(~unfinished[:, None], tokens, new)"),
    (CORE, "torch.where(keep, tokens, new)[", "torch.where(given, tokens, new)["),
    (CORE, "x.shape[1]), value=eos_id)", "x.shape[1]), value=eos_id + 1)"),
    (CORE, "torch.arange(1, width + 1,", "torch.arange(0, width,"),
    (CORE, "(words_ahead == 0)", "(words_ahead <= 1)"),
    (CORE, "unfinished * step.passes", "step.passes"),
    (CORE, "iteration + 1 == limit", "iteration == limit"),
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
    (FOLDER, "text, window - 1), (", "text, window), ("),
    (TOKENIZER, "(pairs[pair], pair))", "pairs[pair])"),
    (TOKENIZER, "pairs[pair] -= times[i]", "pairs[pair] -= 1"),
    (TOKENIZER, "self.rank.get(pair, self.vocab_size)", "self.rank.get(pair, 0)"),
    (TOKENIZER, 'raw.decode("utf-8", "replace")', 'raw.decode("utf-8", "ignore")'),
    (TOKENIZER, "vocab_size - 258", "vocab_size - 256"),
    ("rules/__init__.py", "score.masked_fill(~masked, -torch.inf).argsort", "score.argsort"),
    ("rules/margin.py", "first - second, k", "first / second, k"),
    ("rules/eb_sampler.py", "entropy.cumsum(1) - entropy <= bound", "entropy.cumsum(1) <= bound"),
    ("rules/remdm.py", "(1 - alpha_s - sigma * alpha_t)", "(1 - alpha_s - sigma)"),
    ("rules/wino.py", "keepdim=True) - 1", "keepdim=True)"),
    ("rules/klass.py", "xlogy(now, now) - xlogy(now, before)",
     "xlogy(before, before) - xlogy(before, now)"),
    ("rules/fast_dllm.py", "(n + 1) * (1 - confidence)", "n * (1 - confidence)"),
    ("rules/blocks.py", "W).amin(1, keepdim=True)", "W).amin()"),
    ("rules/dimple_public.py", "min(iteration + 1, steps)", "min(iteration, steps)"),
    ("rules/daedal.py", "(step.masked | step.given).all(1)", "step.masked.all(1)"),
    ("lab/intervals.py", "T95[seeds - 2]", "T95[seeds - 1]"),
    ("lab/intervals.py", "values.mean(0).std()", "values.std()"),
    ("lab/trace.py", "sum(record.computed for record in self)",
     "(self[-1].computed if self else 0)"),
    ("lab/variants.py", "torch.cat([t, (1 - t).clamp(min=EPS)])", "torch.cat([t, t])"),
    ("lab/variants.py", "model.transformer(prefix[:, :-1], causal=False)",
     "model.transformer(prefix[:, :-1], causal=True)"),
    ("lab/training.py", "gradient.shape[1] / gradient.shape[2]",
     "gradient.shape[2] / gradient.shape[1]"),
    ("lab/evaluate.py", "(nats.sum() / tokens.sum())", "(nats / tokens.clamp(min=1)).mean()"),
    ("lab/evaluate.py", "out.ends < out.tokens.shape[1]", "out.ends <= out.tokens.shape[1]"),
    ("lab/board.py", "all(a >= b", "any(a >= b"),
    ("lab/claims.py", "[[x - y] for x, y in zip(a, b)]", "[[x - y for x, y in zip(a, b)]]"),
]


def start(file, old, new, folder):
    """The tests of a copy with this fault in it, as a running process that writes to `output`."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / file).write_text((ROOT / file).read_text("utf-8").replace(old, new), "utf-8")
    # file by file: beside their folder, pytest would run them in the folder's order
    first = FIRST[file if file in FIRST else str(Path(file).parent)]
    tests = [f"tests/test_{name}.py" for name in first]
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
