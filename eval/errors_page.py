"""`docs/troubleshooting.md`: every error that the package raises, as its source says it, with its cure."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = """# Troubleshooting

Every error is one sentence: what is wrong, the bad value, what to do. Here they all are, by where they come from, so
that a search for a few words of yours finds it; `…` stands for what differs. All derive from
`vlmprune.VlmpruneError`. Written by `python -m eval.pages` from the source, never by hand.
"""
# Folder or file of the package -> its heading, in the order of the page.
ROOMS = {
    "api.py": "Wrapping and unwrapping",
    "families": "Models and families",
    "runtime": "Running a wrapped model",
    "methods": "Methods and their options",
    "flow": "What a method returned, and budgets",
    "attention": "Attention and masks",
    "hf": "Arguments and caches",
    "inputs": "Pictures, processors and prompts",
    "guide": "A small model that guides",
    "calibrate": "Calibration",
    "sinks": "Sinks",
    "captioner": "Captions",
    "conformance": "Checking a model",
    "accounting": "Reports and plans",
    "harness": "Commands: models and numbers",
    "apps": "Command line and demo",
    "serving": "Serving",
    "integrations": "Integrations",
    "tiny": "The bundled pair",
    "ops": "Kernels",
    "errors.py": "Misspelt names",
}


def messages(file: Path) -> Iterator[str]:
    """The sentences that a module raises as errors of ours, in order."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            name = ast.unparse(node.exc.func).rpartition(".")[2]
            said = _text(node.exc.args[0])
            if name.endswith("Error") and said.count(" ") > 3:
                yield said


def _text(node: ast.expr) -> str:
    """A string as it is read, `…` for what is put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    package = ROOT / "vlmprune"
    for room, heading in ROOMS.items():
        files = [package / room] if room.endswith(".py") else sorted((package / room).rglob("*.py"))
        found = dict.fromkeys(said for file in files if file.exists() for said in messages(file))
        if found:
            parts.append(f"\n## {heading}\n")
            parts += [f"- {_escaped(said)}\n" for said in found]
    return "".join(parts)


def _escaped(text: str) -> str:
    """As Markdown shows it unchanged, on one line."""
    for sign in "\\`*_<>[]|":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
