"""The notebook runs from its first cell to its last, in an empty folder.

Its commands are forks of this process; tests/test_wheel.py starts the installed ones.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.forked_commands import commands

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "tour.ipynb"
MANY = "--train 160 --val 12"  # enough to learn something; the cells work with fewer
# What draws over what stands there: a return without a new line, a line up, a line erased.
FRAME = re.compile(r"\r(?![\r\n])|\x1b\[\d*[AK]")


@pytest.mark.slow
@pytest.mark.usefixtures("rehearsals_here")
def test_the_notebook_shows_a_trained_models_masks(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "kept without outputs"
    (made,) = (cell for cell in notebook.cells if MANY in cell.source)
    made.source = made.source.replace(MANY, "--train 16 --val 4")
    resources = {"metadata": {"path": str(tmp_path)}}
    with commands(tmp_path_factory.mktemp("bin")) as folder:
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        NotebookClient(notebook, timeout=240, resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    texts = ["".join(o.get("text", "") for o in cell.outputs) for cell in cells]
    for text, said in zip(texts, ("", "FITS", "RTX 3060 Ti", "no findings", "epoch 1: gIoU",
                                  "gIoU", "[SEG]", ""), strict=True):  # fmt: skip
        assert said in text, text
    assert texts[0] == "", "what is installed is not installed again"
    assert not FRAME.search("".join(texts)), "a saved notebook keeps no frames of progress"
    pictures = [o for o in cells[-1].outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 2
