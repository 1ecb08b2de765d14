"""The documents name what the code has, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vlmprune
from eval.tasks.registry import TASKS
from vlmprune.hf.compatibility import NEWEST, OLDEST

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    return README.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_methods_table_is_the_registry() -> None:
    rows = re.findall(r"^\| `([a-z_-]+)` \| (\S+) \|", section("Methods"), flags=re.MULTILINE)
    # A method whose depth follows from its budget has no default layer.
    depth = {name: getattr(cls, "layer", "-") for name, cls in vlmprune.list_methods().items()}
    assert dict(rows) == {name: "keep*L" if layer is None else str(layer) for name, layer in depth.items()}


def test_the_families_are_listed_in_order() -> None:
    assert tuple(re.findall(r"`([a-z0-9_]+)`", section("Model families"))) == vlmprune.list_families()


def test_the_versions_of_transformers_are_those_that_are_tested() -> None:
    assert f"Tested with transformers {OLDEST} to {NEWEST};" in section("Model families")


@pytest.mark.parametrize("name", ["quick-start", "tests"])
def test_the_commands_that_ci_runs_are_there_and_pinned(name: str) -> None:
    block = re.search(rf"<!-- ci: {name} -->\n```bash\n(.+?)\n```", README, flags=re.DOTALL)
    assert block is not None
    assert "-c constraints.txt" in block.group(1)


def test_links_lead_to_files() -> None:
    folders = ("demos/tiny_vlm", "eval", "eval/serving")
    for document in ("README.md", "CONTRIBUTING.md", *(f"{folder}/README.md" for folder in folders)):
        folder = (ROOT / document).parent
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", (ROOT / document).read_text()):
            assert (folder / target).exists(), f"{document} links to {target}"


def test_files_named_in_the_layout_exist() -> None:
    layout = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Adding a method")[0]
    names = re.findall(r"^\| `([^`]+)` \|", layout, flags=re.MULTILINE)
    assert len(names) > 15
    assert not [name for name in names if not (ROOT / name).exists()]


def test_the_table_of_tasks_is_the_registry() -> None:
    rows = re.findall(
        r"^\| (`[^|]+`) \|", (ROOT / "eval/README.md").read_text().split("## Tasks")[1], flags=re.MULTILINE
    )
    assert [name for row in rows for name in re.findall(r"`([^`]+)`", row)] == list(TASKS)
