"""Imports without garbage collection between them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection within the block.

    What Gradio's import and a loaded model make stays: to look through it for garbage again and again took 0.5 to 0.7
    of 3.5 to 3.9 processor seconds between `import vlmprune` and the warm demo. Not for the package itself, whose
    import leaves the interpreter as it is.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
