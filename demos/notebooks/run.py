"""Execute the notebooks and save them with their outputs, so that a rerun changes only what was computed differently.

Needs the extra `dev`. Every notebook gets a process and an empty working folder of its own; nothing is downloaded.

    python -m demos.notebooks.run                    # all of them
    python -m demos.notebooks.run first_prune        # one
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
# In this order for a reader who goes through them.
NAMES = ("first_prune", "which_method", "own_method", "sgl_with_exits", "captions")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(path: Path) -> dict[str, Any]:
    """A notebook with the outputs of this run, and without what differs from run to run or machine to machine.

    Raises:
        subprocess.CalledProcessError: a cell raised; its traceback is on stderr.
    """
    book = json.loads(path.read_text())
    with tempfile.TemporaryDirectory(prefix="books-") as folder:
        work, ran = Path(folder, "work"), Path(folder, "outputs.json")
        work.mkdir()
        command = [sys.executable, "-m", "demos.notebooks.cells", str(path), str(ran)]
        subprocess.run(command, cwd=work, env=environment(folder), stdin=subprocess.DEVNULL, check=True)
        outputs = iter(json.loads(ran.read_text()))
    book["metadata"] = METADATA
    count = 0
    for number, cell in enumerate(book["cells"]):
        cell["id"], cell["metadata"] = f"cell-{number}", {}
        if cell["cell_type"] == "code":
            count += 1
            cell["execution_count"], cell["outputs"] = count, [tidied(one, count) for one in next(outputs)]
    return book


def environment(folder: str) -> dict[str, str]:
    """The variables of a notebook's process: this checkout is what is imported, and no progress bar is saved."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "OMP_NUM_THREADS": "1",  # the bundled pair is faster on one
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # what would draw the bars
        "IPYTHONDIR": folder,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }


def tidied(output: dict[str, Any], count: int) -> dict[str, Any]:
    """An output as it is saved: texts as lists of lines, the cell's number."""
    if output["output_type"] == "stream":
        return output | {"text": output["text"].splitlines(keepends=True)}
    data = output["data"]
    if "image/png" in data:  # Pillow's images offer a JPEG too, and a text with their address
        data = {"image/png": data["image/png"]}
    else:
        data = {form: text.splitlines(keepends=True) for form, text in data.items()}
    number = {"execution_count": count} if output["output_type"] == "execute_result" else {}
    return output | {"data": data} | number


def processor_seconds() -> float:
    """Of this process and the notebooks': on a busy machine the clock says little."""
    own, books = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + books.ru_utime + books.ru_stime


def main() -> None:
    """Execute the named notebooks, or all, and save them."""
    parser = argparse.ArgumentParser(prog="python -m demos.notebooks.run", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], metavar="NAME", help=f"of {', '.join(NAMES)}")
    for name in parser.parse_args().names or NAMES:
        began, path = processor_seconds(), FOLDER / f"{name}.ipynb"
        text = json.dumps(executed(path), ensure_ascii=False, indent=1, sort_keys=True)
        path.write_text(text + "\n")
        print(f"{name}: {processor_seconds() - began:.0f} processor seconds", flush=True)


if __name__ == "__main__":
    main()
