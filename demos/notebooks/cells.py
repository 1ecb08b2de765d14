"""Run the code of one notebook in this process, the way IPython runs cells, and write down what they put out.

    python -m demos.notebooks.cells NOTEBOOK.ipynb OUTPUTS.json

No kernel: nothing here waits for another process or has a time limit, so a busy machine only makes it slower, and a
signal ends it as it ends any program. What a cell writes to stderr, its warnings, goes to this process's own.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

Output = dict[str, Any]  # as notebooks store it
outputs: list[Output] = []  # of the cell that runs


class Printed(io.TextIOBase):
    """A stdout whose text becomes outputs; what is printed in one go is one output."""

    def write(self, text: str) -> int:
        if not (outputs and outputs[-1]["output_type"] == "stream"):
            outputs.append({"output_type": "stream", "name": "stdout", "text": ""})
        outputs[-1]["text"] += text
        return len(text)


class Results(DisplayHook):
    """What a cell's last expression is worth, in every form it can be shown in."""

    def write_output_prompt(self) -> None: ...

    def write_format_data(self, format_dict: dict[str, Any], md_dict: Any = None) -> None:
        outputs.append(shown("execute_result", format_dict))

    def finish_displayhook(self) -> None: ...


class Displays(DisplayPublisher):
    """What `display` and matplotlib show."""

    def publish(self, data: dict[str, Any], *_: Any, **__: Any) -> None:
        outputs.append(shown("display_data", data))


def shown(kind: str, data: dict[str, Any]) -> Output:
    """An output of these forms; pictures are in base64."""
    texts = {form: base64.b64encode(one).decode() if isinstance(one, bytes) else one for form, one in data.items()}
    return {"output_type": kind, "data": texts, "metadata": {}}


def run(sources: list[str]) -> list[list[Output]]:
    """The outputs of each cell; what a cell raises is raised."""
    shell = InteractiveShell.instance(
        displayhook_class=Results,
        display_pub_class=Displays,
        config=Config(HistoryManager={"enabled": False}),  # no file that other runs write too
    )
    ran = []
    with contextlib.redirect_stdout(Printed()):
        for source in sources:
            outputs.clear()
            shell.run_cell(source, store_history=True).raise_error()
            ran.append(list(outputs))
    return ran


if __name__ == "__main__":
    book = json.loads(Path(sys.argv[1]).read_text())
    ran = run(["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"])
    Path(sys.argv[2]).write_text(json.dumps(ran))
