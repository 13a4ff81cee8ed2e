"""Tables in Markdown, and docs/results.md, whose parts `python -m lab ... --write` replaces."""
import csv
import io
import json
import platform
import re
import time
from pathlib import Path

import torch

from lab.checkpoint import ROOT, write
from lab.shell import commit

RESULTS = ROOT / "docs" / "results.md"
FIGURES = ROOT / "docs" / "figures"


def table_of(rows):
    """A Markdown table of dicts, column -> cell; a row may lack columns."""
    head = list(dict.fromkeys(name for row in rows for name in row))
    lines = [head, ["---"] * len(head), *([row.get(name, "") for name in head] for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def in_csv(rows):
    """Rows, dicts of different keys, as one CSV; a dict in a cell as JSON."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(dict.fromkeys(key for row in rows for key in row)),
                            lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: json.dumps(value) if isinstance(value, dict) else value
                      for key, value in row.items()} for row in rows)
    return lines.getvalue()


def where(device):
    """What computes, in words."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{cpu()}, {torch.get_num_threads()} threads{', mps' * (device.type == 'mps')}"
    return f"{name}, PyTorch {torch.__version__}"


def cpu():
    """The CPU's name, and how far PyTorch uses it."""
    info = Path("/proc/cpuinfo")  # of Linux
    found = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name} as {torch.backends.cpu.get_cpu_capability()}"


def measured(command, device):
    """A line that says by which command, when, where and with which code."""
    return (f"`{command}`: {time.strftime('%Y-%m-%d')}, {where(device)}, Python "
            f"{platform.python_version()}, commit {commit()}.")


def write_part(name, text):
    """Put a measurement, Markdown, into docs/results.md, in place of what stands between
    <!-- NAME --> and <!-- end of NAME -->. Raises OSError, and ValueError if there is no such
    place."""
    place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.S)
    new = lambda found: f"{found[1]}\n{text.strip()}\n\n{found[2]}"
    after, n = place.subn(new, RESULTS.read_text("utf-8"))
    if n != 1:
        raise ValueError(f"{RESULTS}: expected one <!-- {name} --> and, after it, one "
                         f"<!-- end of {name} -->")
    write(RESULTS, lambda file: file.write(after.encode()))
