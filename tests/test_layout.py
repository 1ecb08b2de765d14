"""The house: imports go one way, names are used once, and CONTRIBUTING shows the tree as it is."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.source import definition

ROOT = Path(__file__).parents[1]
# Imports go down this list: a module may import from its own line and from the lines below it.
LINES = (
    "apps integrations",
    "harness",
    "captioner sinks calibrate serving conformance",
    "api",
    "guide",
    "runtime",
    "accounting",
    "methods",
    "attention",
    "families",
    "flow",
    "ops",
    "hf inputs tiny errors",
)
LEVEL = {room: level for level, line in enumerate(LINES) for room in line.split()}
AT_THE_ROOT = {"__init__", "__main__", "api", "errors"}
LONGEST_FUNCTION = 60  # lines, docstring included
LONGEST_FILE = 350
# The public names are strings that name modules, and `python -m vlmprune` is the command line.
EXEMPT = {"vlmprune", "vlmprune.__main__"}


@cache
def modules(*folders: str) -> dict[str, Path]:
    """Every module below the folders by its dotted name, packages by theirs."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(name: str, path: Path) -> Iterator[str]:
    """The modules of vlmprune that a module imports: at its top, inside functions and for type checkers alike."""
    known = modules("vlmprune")
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                target = f"{base}.{alias.name}"
                if target in known or base in known:
                    yield target if target in known else base


@cache
def arrows() -> dict[str, frozenset[str]]:
    return {name: frozenset(imports(name, path)) - {name} for name, path in modules("vlmprune").items()}


def room(module: str) -> str:
    return module.split(".")[1]


def test_four_modules_lie_at_the_root() -> None:
    assert {path.stem for path in (ROOT / "vlmprune").glob("*.py")} == AT_THE_ROOT


def test_every_room_has_its_line() -> None:
    rooms = {path.parent.name for path in (ROOT / "vlmprune").glob("*/__init__.py")}
    assert rooms | {"api", "errors"} == set(LEVEL)


def test_imports_go_down() -> None:
    upward = [
        f"{name} -> {target}"
        for name, targets in arrows().items()
        for target in targets
        if name not in EXEMPT and target != "vlmprune"
        if LEVEL[room(target)] < LEVEL[room(name)]
    ]
    assert upward == []


def test_imports_run_in_no_circle() -> None:
    """Modules are taken away that import none of those left: what stays is in a circle, or imports one."""
    left = {name: set(targets) - EXEMPT for name, targets in arrows().items() if name not in EXEMPT}
    # A package is imported with each of its modules; what counts is what its own file imports.
    while done := {name for name, targets in left.items() if not targets & left.keys()}:
        left = {name: targets for name, targets in left.items() if name not in done}
    assert sorted(left) == []


def definitions(*folders: str) -> Iterator[tuple[Path, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in modules(*folders).values():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def test_a_class_name_is_used_once() -> None:
    names = Counter(node.name for _, node in definitions("vlmprune", "eval", "demos") if isinstance(node, ast.ClassDef))
    assert [name for name, times in names.items() if times > 1] == []


def is_kernel_or_command(path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    decorators = {ast.unparse(one) for one in node.decorator_list}
    return any("triton.jit" in one for one in decorators) or path.parent == ROOT / "vlmprune/apps/cli"


def test_no_function_is_long() -> None:
    long = [
        f"{path.relative_to(ROOT)} {node.name}: {node.end_lineno - node.lineno + 1}"  # type: ignore[operator]  # parsed from a file, so it has an end
        for path, node in definitions("vlmprune", "eval", "demos")
        if not isinstance(node, ast.ClassDef) and not is_kernel_or_command(path, node)
        if node.end_lineno - node.lineno >= LONGEST_FUNCTION  # type: ignore[operator]  # as above
    ]
    assert long == []


def test_no_file_is_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in modules("vlmprune", "eval", "demos").values()}
    assert [f"{path.relative_to(ROOT)}: {n}" for path, n in lengths.items() if n > LONGEST_FILE] == []


def test_one_module_has_the_state_of_threads() -> None:
    users = [
        path.relative_to(ROOT)
        for path in modules("vlmprune", "eval", "demos").values()
        if re.search(r"threading\.local\b|import local\b", path.read_text())
    ]
    assert len(users) <= 1, users


@pytest.mark.parametrize("held", ["method", "pruner", "part", "intervention"])
def test_what_a_method_can_is_declared(held: str) -> None:
    """No `getattr(method, name, default)`: a misspelt option would be silence."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules("vlmprune", "eval", "demos").values()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) == 3
        if ast.unparse(node.args[0]).rpartition(".")[2] == held
    ]
    assert found == []


def table() -> list[str]:
    """The paths of CONTRIBUTING's table."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return re.findall(r"^\| `((?:vlmprune|eval|demos|tests)/[\w/.]*)` \|", text, flags=re.MULTILINE)


def test_contributings_table_is_the_tree() -> None:
    rows = table()
    assert [row for row, times in Counter(rows).items() if times > 1] == []
    assert [row for row in rows if not (ROOT / row).exists()] == []
    files = {row for row in rows if row.endswith(".py")}
    folders = [row for row in rows if row.endswith("/")]
    silent = ("__init__.py", "__main__.py")
    missing = [
        str(path.relative_to(ROOT))
        for path in modules("vlmprune", "eval", "demos").values()
        if path.name not in silent and str(path.relative_to(ROOT)) not in files
        if not any(str(path.relative_to(ROOT)).startswith(folder) for folder in folders)
    ]
    assert missing == []


@pytest.mark.parametrize("room", sorted({one for line in LINES for one in line.split()} - {"api", "errors", "apps"}))
def test_the_table_names_the_modules_of_a_room(room: str) -> None:
    """All of them, or those that are shared where there is one file per method, family and the like."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (row,) = re.findall(rf"^\| `vlmprune/{room}/` \| (.*) \|$", text, flags=re.MULTILINE)
    named = set(re.findall(r"`([a-z_0-9]+)`", row)) - {room}
    modules_there = {path.stem for path in (ROOT / "vlmprune" / room).glob("*.py")} - {"__init__", room}
    functions = {"map_images", "find_sinks"}
    if "one file per" in row:
        assert named <= modules_there
    else:
        assert named - functions == modules_there


def test_the_way_of_a_prompt_exists() -> None:
    """CONTRIBUTING tells a prompt's way in functions, in order, each a link to the file that defines it."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## The way of a prompt")[2].partition("\n## ")[0]
    steps = re.findall(r"\[`([\w.]+)`\]\(([\w/.]+)\)", section)
    assert len(steps) >= 8
    assert len([line for line in section.splitlines() if line.strip()]) <= 15
    for name, file in steps:
        definition(tree(ROOT / file), name)
