"""The documents name what the code has, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vlmprune
from eval.tasks.registry import TASKS
from vlmprune import families
from vlmprune.hf.compatibility import NEWEST, OLDEST
from vlmprune.methods import registry

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
    assert tuple(re.findall(r"`([a-z0-9_]+)`", section("Model families"))) == tuple(vlmprune.list_families())


def test_the_versions_of_transformers_are_those_that_are_tested() -> None:
    assert f"Tested with transformers {OLDEST} to {NEWEST};" in section("Model families")


@pytest.mark.parametrize("name", ["quick-start", "tests"])
def test_the_commands_that_ci_runs_are_there_and_pinned(name: str) -> None:
    block = re.search(rf"<!-- ci: {name} -->\n```bash\n(.+?)\n```", README, flags=re.DOTALL)
    assert block is not None
    assert "-c constraints.txt" in block.group(1)


def test_links_lead_to_files() -> None:
    folders = ("demos/tiny_vlm", "eval", "eval/serving")
    pages = [f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")]
    for document in ("README.md", "CONTRIBUTING.md", *pages, *(f"{folder}/README.md" for folder in folders)):
        folder = (ROOT / document).parent
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", (ROOT / document).read_text()):
            assert (folder / target).exists(), f"{document} links to {target}"


@pytest.mark.parametrize("name", ["own_method", "own_family"])
def test_the_examples_run(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    page = (ROOT / f"docs/{name}.md").read_text()
    (code,) = re.findall(r"^```python\n(.+?)^```", page, flags=re.MULTILINE | re.DOTALL)
    exec(compile(code, f"docs/{name}.md", "exec", dont_inherit=True), {"__name__": name})
    assert re.search(r"kept\s+49", capsys.readouterr().out)


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
