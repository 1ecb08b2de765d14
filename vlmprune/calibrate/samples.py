"""What both calibrations do with a user's data: check it, and show how far they are."""

from collections.abc import Collection, Iterable
from typing import Any

from rich.console import Console
from rich.progress import track

from ..errors import VlmpruneError


def triples(data: Iterable[Any]) -> list[Any]:
    """Calibration data as a list of (image, question, answers); no data and samples of another form are refused."""
    samples = list(data)
    if not samples:
        raise VlmpruneError("The calibration data is empty; pass (image, question, answers) tuples.")
    for number, sample in enumerate(samples):
        if not isinstance(sample, tuple | list) or len(sample) != 3:
            raise VlmpruneError(
                f"Sample {number} of the calibration data is {sample!r:.60}; make every one (image, question, answers)."
            )
    return samples


def progress(items: Collection[Any], what: str) -> Iterable[Any]:
    """The items, with a bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    return track(items, what, console=console, transient=True, disable=not console.is_terminal)
