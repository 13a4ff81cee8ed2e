"""Tables in Markdown, and docs/results.md, whose parts `python -m lab ... --write` replaces."""
import platform
import re
import time
from pathlib import Path

import torch

from lab.checkpoint import ROOT, write
from lab.shell import commit

RESULTS = ROOT / "docs" / "results.md"
FIGURES = ROOT / "docs" / "figures"


def table(head, rows):
    """A Markdown table of strings."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def where(device):
    """What computes, in words."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{cpu()}, {torch.get_num_threads()} threads"
    return f"{name}, PyTorch {torch.__version__}"


def cpu():
    """The CPU's name, and how far PyTorch uses it."""
    info = Path("/proc/cpuinfo")  # of Linux
    found = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name} as {torch.backends.cpu.get_cpu_capability()}"


def write_part(name, command, device, text):
    """Put a measurement into docs/results.md, in place of the one between <!-- NAME --> and
    <!-- end of NAME -->: its command, date, machine and commit, then `text`, Markdown. Raises
    OSError, and ValueError if results.md has no such place."""
    before = RESULTS.read_text("utf-8")
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    if before.count(start) != 1 or before.count(end) != 1:
        raise ValueError(f"{RESULTS}: expected one {start.strip()} and, after it, one {end}")
    head, rest = before.split(start)
    said = (f"`{command}`: {time.strftime('%Y-%m-%d')}, {where(device)}, Python "
            f"{platform.python_version()}, commit {commit()}.")
    after = head + start + f"\n{said}\n\n{text.strip()}\n\n" + end + rest.split(end)[1]
    write(RESULTS, lambda file: file.write(after.encode()))
