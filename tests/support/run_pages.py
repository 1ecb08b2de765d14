"""Runs the code blocks of pages as a reader would: `python -m tests.support.run_pages PAGE...`.

Every block is a program of its own. Prints a line for each that ran; one that fails ends it with its traceback.
"""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path


def blocks(page: Path, *, all_packages: bool = True) -> list[tuple[int, str]]:
    """The line and the source of every Python block of a page.

    `all_packages`: also of those after a mark that they need a package (`<!-- needs: torchao -->`) which is not here.
    """
    text = page.read_text()
    found = re.finditer(r"^(?:<!-- needs: (\w+) -->\n)?```python\n(.+?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [
        (text[: match.start(2)].count("\n") + 1, match.group(2))
        for match in found
        if all_packages or match.group(1) is None or find_spec(match.group(1)) is not None
    ]


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        for line, code in blocks(page, all_packages=False):
            source = "\n" * (line - 1) + code  # so that a traceback names the line of the page
            exec(compile(source, str(page), "exec", dont_inherit=True), {"__name__": page.stem})
            print(f"ran {page.name}:{line}", flush=True)
