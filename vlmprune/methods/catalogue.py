"""The built-in methods as their sources describe them, so that the command line lists them without importing torch."""

import ast
from pathlib import Path
from typing import Any

from . import BUILT_IN

_REQUIRED = object()


def catalogue() -> list[dict[str, Any]]:
    """One JSON-serialisable record per built-in method, in the order of `BUILT_IN`.

    `name`; `options`, name -> default (None where there is none); `required`, the names of the options without a
    default; `summary`, the first line of the docstring.
    """
    sources = [file.read_text(encoding="utf-8") for file in Path(__file__).parent.rglob("*.py")]
    nodes = [node for source in sources for node in ast.parse(source).body]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    return [_record(classes[name.rpartition(".")[2]], classes) for name in BUILT_IN]


def _record(cls: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> dict[str, Any]:
    (name,) = (node.value for node in _assigned(cls) if ast.unparse(node.target) == "name" and node.value)
    found = _options(cls, classes)
    options = {option: found[option][1] for option in sorted(found, key=lambda option: found[option][0])}
    return {
        "name": ast.literal_eval(name),
        "options": {option: None if value is _REQUIRED else value for option, value in options.items()},
        "required": [option for option, value in options.items() if value is _REQUIRED],
        "summary": (ast.get_docstring(cls) or "").partition("\n")[0],
    }


def _assigned(cls: ast.ClassDef) -> list[ast.AnnAssign]:
    return [node for node in cls.body if isinstance(node, ast.AnnAssign)]


def _options(cls: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> dict[str, tuple[bool, Any]]:
    """What the constructor of a dataclass takes: name -> (keyword only, default)."""
    options: dict[str, tuple[bool, Any]] = {}
    for base in reversed([ast.unparse(base) for base in cls.bases]):
        options |= _options(classes[base], classes) if base in classes else {}
    for field in _assigned(cls) if cls.decorator_list else []:
        if "ClassVar" not in ast.unparse(field.annotation):
            words = field.value.keywords if isinstance(field.value, ast.Call) else []  # of dataclasses.field
            value = next((word.value for word in words if word.arg == "default"), field.value)
            default = _REQUIRED if value is None else ast.literal_eval(value)
            options[ast.unparse(field.target)] = any(word.arg == "kw_only" for word in words), default
    return options
