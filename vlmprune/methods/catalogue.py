"""The built-in methods as their sources describe them, so that the command line lists them without importing torch."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

_REQUIRED = object()


def catalogue() -> list[dict[str, Any]]:
    """One JSON-serialisable record per built-in method, in the order of `BUILT_IN`.

    `name`; `options`, name -> default (None where there is none); `required`, the names of the options without a
    default; `summary`, the first line of the docstring.
    """
    files = sorted(Path(__file__).parent.glob("*.py"))
    nodes = [node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    (built_in,) = (
        node.value for node in nodes if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "BUILT_IN"
    )
    assert isinstance(built_in, ast.Tuple)
    return [_record(classes[ast.unparse(name)], classes) for name in built_in.elts]


def _record(cls: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> dict[str, Any]:
    (name,) = (node.value for node in _assigned(cls) if ast.unparse(node.target) == "name")
    found = _options(cls, classes)
    options = {option: found[option][1] for option in sorted(found, key=lambda option: found[option][0])}
    return {
        "name": _value(name),
        "options": {option: None if value is _REQUIRED else value for option, value in options.items()},
        "required": [option for option, value in options.items() if value is _REQUIRED],
        "summary": (ast.get_docstring(cls) or "").partition("\n")[0],
    }


def _assigned(cls: ast.ClassDef) -> list[ast.AnnAssign]:
    return [node for node in cls.body if isinstance(node, ast.AnnAssign)]


def _value(node: ast.expr | None) -> Any:
    return _REQUIRED if node is None else ast.literal_eval(node)


def _options(cls: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> dict[str, tuple[bool, Any]]:
    """What the constructor takes: name -> (keyword only, default). It is a dataclass's or written out."""
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            named, only = node.args.args[1:], node.args.kwonlyargs
            defaults = [None] * (len(named) - len(node.args.defaults)) + node.args.defaults
            options = {arg.arg: (False, _value(value)) for arg, value in zip(named, defaults, strict=True)}
            pairs = zip(only, node.args.kw_defaults, strict=True)
            return options | {arg.arg: (True, _value(value)) for arg, value in pairs}
    options = {}
    for base in map(ast.unparse, cls.bases):
        options |= _options(classes[base], classes) if base in classes else {}
    for field in _assigned(cls):
        if "ClassVar" not in ast.unparse(field.annotation):
            call = field.value.keywords if isinstance(field.value, ast.Call) else None  # of dataclasses.field
            given = {k.arg: _value(k.value) for k in call} if call else {"default": _value(field.value)}
            options[ast.unparse(field.target)] = given.get("kw_only", False), given["default"]
    return options
