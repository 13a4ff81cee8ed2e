"""The notebook docs/tour.ipynb: nothing but its text in git, and every cell runs."""
import json
from pathlib import Path

import pytest
from conftest import missing

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "docs" / "tour.ipynb"
CELLS = json.loads(TOUR.read_text("utf-8"))["cells"]


def test_it_is_stripped_of_outputs():
    assert len(CELLS) > 10
    for cell in CELLS:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(monkeypatch):
    """Some three minutes, alone on 2 cores."""
    try:
        import ipykernel  # noqa: F401
        import nbformat
        from nbclient import NotebookClient
    except ImportError:
        missing('nbclient and ipykernel (pip install -e ".[check]")')
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(TOUR, as_version=4)
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3",
                            resources={"metadata": {"path": str(TOUR.parent)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "\n".join(json.dumps(output) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]
    for wanted in ("a large green circle", "| position | likeliest |", "<iframe srcdoc=",
                   "held-out scenes, look", "out/mine.py  ", "nats per token",
                   "figures: out/tour"):
        assert wanted in text, wanted
