"""How results reach the terminal: a console for people, a function for JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.status import Status
from rich.table import Table

if TYPE_CHECKING:
    from ..captioner import Caption

WIDTH_OF_A_PIPE = 120  # rich assumes 80 columns where it finds no terminal, which folds the wider tables


def console(*, stderr: bool = False) -> Console:
    """A console that prints text unchanged: answers and paths may look like rich's markup."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_OF_A_PIPE
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def table(headings: Sequence[str], *, left: Collection[int] = (0,), **options: Any) -> Table:
    """An empty table; the columns in `left` are left-aligned, the others right-aligned."""
    made = Table(box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", **options)
    for column, heading in enumerate(headings):
        # Folded, not cut: a number or a heading that is too wide is still there.
        made.add_column(heading, justify="left" if column in left else "right", overflow="fold")
    return made


def print_json(value: Any) -> None:
    """Print all of stdout for ``--json``. NaN is not valid JSON, so a value that holds one raises."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def spinner(message: str) -> Status:
    """A spinner on stderr while a model loads or answers; nothing if stderr is not a terminal."""
    return console(stderr=True).status(message)


def percent(part: float, whole: float) -> str:
    """``part`` of ``whole`` in percent."""
    return f"{part / whole:.1%}" if whole else "-"


def saved(before: float, after: float) -> str:
    """The reduction from ``before`` to ``after`` in percent; negative if it grew."""
    return f"{1 - after / before:.1%}" if before else "-"


def amount(value: float, unit: str = "") -> str:
    """A large number with an SI prefix: ``12.3 M``."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 1000 or prefix == "E":
            break
        value /= 1000
    digits = f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{digits} {prefix}{unit}".rstrip()


def milliseconds(seconds: float) -> str:
    """A duration in ms, with a digit more below 10 ms."""
    ms = seconds * 1000
    return f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"


def facts(caption: Caption) -> list[tuple[str, str]]:
    """The cost of a caption as pairs of name and value."""
    cost = caption.cost
    said = [one for one in caption.sentences if one.sample is not None]
    layers = f"{cost.visual_tokens} ({cost.layer_avg_tokens:.0f} averaged over its layers)"
    found = [
        ("sentences kept", f"{sum(one.kept for one in said)} of {len(said)}"),
        ("calls", ", ".join(f"{stage} {count}" for stage, count in cost.calls.items())),
        ("time", ", ".join(f"{stage} {milliseconds(value)}" for stage, value in cost.seconds.items())),
        ("visual tokens into the language model", layers),
    ]
    return found if cost.prefill_flops is None else [*found, ("prefill FLOPs", amount(cost.prefill_flops))]


def note(message: str) -> None:
    """Print one line on stderr."""
    print("vlmprune:", " ".join(message.split()), file=sys.stderr)
