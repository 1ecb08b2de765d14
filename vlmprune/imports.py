"""Imports without garbage collection between them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection within the block.

    What PyTorch, transformers and Gradio make when they are imported stays: to look through it for garbage again and
    again took a quarter of the processor's time when the demo starts. Not for the package itself, whose import leaves
    the interpreter as it is.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
