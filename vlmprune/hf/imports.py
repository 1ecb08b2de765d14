"""What surrounds imports: a torchvision that does not load put aside, no garbage collection between them."""

import gc
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection within the block, whose objects stay, as those of Gradio's import and a loaded model do.

    To look through these again and again took 0.5 to 0.7 of 3.5 to 3.9 processor seconds until the demo was warm.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def hide_broken_torchvision() -> None:
    """Let a torchvision that is there and does not load count as missing, before transformers imports it.

    A wheel made for another torch raises `operator torchvision::nms does not exist`, and with it every module of
    transformers that reads images. Without torchvision they work on Pillow.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except Exception:
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # importing it is an ImportError from now on
        known = sys.modules.get("transformers.utils.import_utils")
        for name in ("is_torchvision_available", "is_torchvision_v2_available"):
            if (clear := getattr(getattr(known, name, None), "cache_clear", None)) is not None:
                clear()
