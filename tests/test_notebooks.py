"""The committed notebooks are short and are what their cells compute: run, without errors, with their pictures."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from demos.notebooks import run
from tests.support.grid import only_full

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "demos/notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
MOST_CELLS, MOST_BYTES = 12, 300 << 10


def saved(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def joined(text: str | list[str]) -> str:
    """A notebook's texts are lists of lines on disk and strings in memory."""
    return text if isinstance(text, str) else "".join(text)


def shape(book: Any) -> list[tuple[str, str, list[tuple[str, ...]]]]:
    """Of each cell its type and source, and of each of its outputs the type, the stream and what it can be shown as."""
    return [
        (
            cell["cell_type"],
            joined(cell["source"]),
            [
                (one["output_type"], one.get("name", ""), *sorted(one.get("data", {})))
                for one in cell.get("outputs", [])
            ],
        )
        for cell in book["cells"]
    ]


def outputs(book: Any) -> list[Any]:
    return [one for cell in book["cells"] for one in cell.get("outputs", [])]


def markdown(book: Any) -> str:
    return "\n".join(joined(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "markdown")


def test_there_are_five() -> None:
    assert NAMES == ["captions", "first_prune", "own_method", "sgl_with_exits", "which_method"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_short_and_was_run_from_top_to_bottom(name: str) -> None:
    book = saved(name)
    assert len(book["cells"]) <= MOST_CELLS
    assert (FOLDER / f"{name}.ipynb").stat().st_size <= MOST_BYTES
    counts = [cell["execution_count"] for cell in book["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    types = {one["output_type"] for one in outputs(book)}
    assert "stream" in types
    assert "error" not in types


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_a_picture(name: str) -> None:
    assert any("image/png" in one.get("data", {}) for one in outputs(saved(name)))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_holds_nothing_of_the_machine_it_ran_on(name: str) -> None:
    book = saved(name)
    assert all(one.get("name") != "stderr" for one in outputs(book))
    text = "".join(
        joined(one.get("text", "")) + joined(one.get("data", {}).get("text/plain", "")) for one in outputs(book)
    )
    assert re.findall(r"/(?:home|root|tmp|usr|work|Users)/\S*|0x[0-9a-f]{6,}", text) == []
    assert set(book["metadata"]) == {"kernelspec", "language_info"}
    assert [cell["metadata"] for cell in book["cells"] if cell["metadata"]] == []


@pytest.mark.parametrize("name", NAMES)
def test_measured_numbers_come_out_of_cells(name: str) -> None:
    """The sentences around them hold no fraction and no percentage, which nothing would keep up to date."""
    prose = re.sub(r"\]\([^)]*\)|`[^`]*`|95 % interval", "", markdown(saved(name)))
    assert re.findall(r"\d+\.\d+|\d+ ?%", prose) == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files(name: str) -> None:
    targets = re.findall(r"\]\(((?!https?:)[^)#]+)\)", markdown(saved(name)))
    assert [target for target in targets if not (FOLDER / target).exists()] == []


def test_what_runs_notebooks_is_installed_for_developers() -> None:
    """Elsewhere the tests below skip, so that here alone would nobody notice."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "ipython" in {Requirement(one).name for one in project["optional-dependencies"]["dev"]}


@only_full
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name: str) -> None:
    """A cell that raises fails here with its traceback."""
    pytest.importorskip("IPython")
    assert sorted(run.NAMES) == NAMES
    path = FOLDER / f"{name}.ipynb"
    assert shape(run.executed(path)) == shape(saved(name)), f"run python -m demos.notebooks.run {name} and commit it"


def written(folder: Path, *sources: str) -> Path:
    """A notebook of these cells."""
    cells = [{"cell_type": "code", "source": [source], "outputs": [], "execution_count": None} for source in sources]
    path = folder / "book.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


@only_full
def test_outputs_are_saved_in_the_order_and_form_in_which_cells_make_them(tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    figure = "from matplotlib import pyplot as plt\nprint(1)\nplt.plot([1, 2])\nplt.show()\nprint(2, 3)\nprint(4)"
    book = run.executed(written(tmp_path, figure, "'warm'; x = 6 * 7\ndisplay(x)\nx", "print(x)", "x;"))
    first, second, third, last = (cell["outputs"] for cell in book["cells"])
    assert [one["output_type"] for one in first] == ["stream", "display_data", "stream"]
    assert base64.b64decode(first[1]["data"]["image/png"]).startswith(b"\x89PNG")
    assert first[2]["text"] == ["2 3\n", "4\n"]
    assert second == [
        {"output_type": "display_data", "data": {"text/plain": ["42"]}, "metadata": {}},
        {"output_type": "execute_result", "data": {"text/plain": ["42"]}, "metadata": {}, "execution_count": 2},
    ]
    assert third[0]["text"] == ["42\n"]  # later cells see what earlier ones named
    assert last == []
    assert [cell["execution_count"] for cell in book["cells"]] == [1, 2, 3, 4]


@only_full
def test_a_cell_that_raises_stops_the_run_with_its_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("IPython")
    with pytest.raises(subprocess.CalledProcessError):
        run.executed(written(tmp_path, "1", "{}['missing']", "print('never')"))
    assert capfd.readouterr().err.rstrip().endswith("KeyError: 'missing'")


@only_full
def test_a_signal_ends_a_run_as_it_ends_any_program(tmp_path: Path) -> None:
    """It is not caught and called the death of a kernel, as when a time limit around the tests sent one."""
    pytest.importorskip("IPython")
    running_still = tmp_path / "running"
    cell = f"import time; from pathlib import Path\nhere = Path({str(running_still)!r})\nhere.touch()\n"
    path = written(tmp_path, cell + "while here.exists():\n    time.sleep(0.05)")
    code = f"from pathlib import Path; from demos.notebooks import run; run.executed(Path({str(path)!r}))"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as running:
        while not running_still.exists():
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        assert running.wait() == -signal.SIGTERM
    running_still.unlink()
