"""`docs/each_method.md`: what every built-in method does, when to use it and what it costs, from its own docstring.

The classes say what, when, which options and where they depart from the official code; the grid's record says what they
cost on the bundled pair.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlmprune.harness.format import milliseconds
from vlmprune.methods import BUILT_IN
from vlmprune.methods.catalogue import catalogue

from .markdown import bullets, paragraph
from .plots import Summary, prefill_flops
from .results_page import relative
from .tables import accuracy, by_task, named, read

METHODS = Path(__file__).parents[1] / "vlmprune" / "methods"
TASK, KEEP = "scenes", "0.18"  # whose rows are quoted
HEAD = (
    "Of each method what it keeps or changes, when to use it, what it costs, its options, where it departs from its "
    "official code, and its source. Written by `python -m eval.pages` from the docstrings and the records, never by "
    "hand; [all in one table](methods.md).",
    "Common to all: a budget is rounded half up and is each image's own, kept tokens keep their order and positions, "
    "and every pruner takes `keep`, `layer`, `positions`, `top_p`, `floor` and, for videos, `frames`. Costs are those "
    f"of the bundled toy pair on its scenes, at `keep={KEEP}` where there is a budget ([conditions, other budgets and "
    "intervals](results.md)): "
    "accuracy with its standard error, prefill FLOPs (a guide's included) relative to the unpruned model, median time "
    "per question. They say nothing about your model.",
)
# Declaration of a class -> what a method reads.
READS = {
    "reads_attention": "attention of chosen rows in one layer, computed beside the fused kernel",
    "reads_keys": "keys of the layer before, which are there already",
    "reads_own_layer": "the projections of the next layer, computed twice",
    "reads_vision": "attention and keys of one layer of the vision tower, computed beside it",
    "reads_text": "hidden states of the text",
}
FROM = re.compile(r"Departures? from the official code:\s+")


class MethodPage(NamedTuple):
    """A method as its source describes it."""

    name: str
    source: str  # of the module: who, where, when
    what: str
    when: str
    options: list[str]
    departures: list[str]
    reads: list[str]


def page(folder: Path) -> str:
    """The whole page, in the order of `vlmprune methods`."""
    rows = by_task(read(folder))[TASK]
    options = {one["name"]: one["options"] for one in catalogue()}
    sections = (section(described(built_in), options, rows) for built_in in BUILT_IN)
    return "\n\n".join(["# Methods, one by one", *map(paragraph, HEAD), *sections]) + "\n"


def section(method: MethodPage, options: dict[str, dict[str, Any]], rows: Sequence[Summary]) -> str:
    """What is said about one method."""
    parts = [
        f"## {method.name}",
        paragraph(method.what),
        paragraph(f"**When.** {method.when[:1].upper()}{method.when[1:]}"),
        paragraph(f"**Cost.** {cost(method, rows)}"),
    ]
    if method.options:
        parts += ["**Options.**", bullets(defaulted(one, options[method.name]) for one in method.options)]
    if "arXiv" not in method.source:
        return "\n\n".join([*parts, "**Source.** No paper's method."])
    first, *further = method.departures or ["None but those common to all."]
    parts.append(paragraph(f"**Departures from the official code.** {first[:1].upper()}{first[1:]}"))
    parts += [bullets(further)] if further else []
    return "\n\n".join([*parts, paragraph(f"**Source.** {linked(method.source)}")])


def cost(method: MethodPage, rows: Sequence[Summary]) -> str:
    """What a method reads, and what it took in the grid."""
    said = f"Reads {'; '.join(method.reads)}. " if method.reads else ""
    row = named(rows, method.name, KEEP) or named(rows, method.name)
    if row is None:
        return f"{said}Not in the grid."
    flops = "" if prefill_flops(row) is None else f"{relative(row, rows):.1%} of the prefill FLOPs, "
    return f"{said}Accuracy {accuracy(row)}, {flops}{milliseconds(row['costs']['seconds']['total'])}."


def defaulted(entry: str, options: dict[str, Any]) -> str:
    """An option's entry with its default behind its name, where it has one."""
    for name, value in options.items():
        if value is not None:
            entry = re.sub(rf"`{name}`(?=.*: )", f"`{name}={value!r}`", entry, count=1)
    return entry


def linked(source: str) -> str:
    """A reference whose paper can be opened."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)


def described(built_in: str) -> MethodPage:
    """A method, from `module.Class`."""
    module, _, name = built_in.rpartition(".")
    tree = ast.parse((METHODS / f"{module.replace('.', '/')}.py").read_text())
    (cls,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    fields = {ast.unparse(node.target): node.value for node in cls.body if isinstance(node, ast.AnnAssign)}
    blocks = re.split(r"\n+(?=Raises:)|\n\n", ast.get_docstring(cls) or "")
    labelled = {block.partition(":")[0]: block for block in blocks if block.startswith(("Args:", "Raises:", "When: "))}
    what, *departures = FROM.split("\n".join(block for block in blocks if block not in labelled.values()))
    guided = any("Guide" in ast.unparse(base) for base in cls.bases)
    return MethodPage(
        name=ast.literal_eval(fields["name"] or ast.Constant("")),
        source=one_line(ast.get_docstring(tree) or ""),
        what=one_line(what),
        when=one_line(labelled.get("When", "").removeprefix("When: ")),
        options=[entry(text) for text in re.split(r"\n    (?=\S)", labelled.get("Args", ""))[1:]],
        departures=[one_line(part) for text in departures for part in re.split(r"^- ", text, flags=re.MULTILINE)],
        reads=["the guide's attention, in a run of it that comes first"] * guided
        + [READS[field] for field in READS if ast.unparse(fields.get(field) or ast.Constant(False)) == "True"],
    )


def entry(text: str) -> str:
    """An option of a docstring, its name as code."""
    names, _, said = one_line(text).partition(": ")
    return f"{', '.join(f'`{name}`' for name in names.split(', '))}: {said}"


def one_line(text: str) -> str:
    """Text as one line."""
    return " ".join(text.split())
