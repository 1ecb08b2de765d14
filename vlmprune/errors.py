"""Every exception a user can meet. Each message is one sentence: what is wrong, the bad value, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

VIDEO = "The prompt has a video, which is not supported yet; ask about its frames as a list of images."


class VlmpruneError(ValueError):
    """Base class of all errors raised for user input."""


class UnsupportedModelError(VlmpruneError):
    """The model is no vision-language model, or one of a family without an adapter."""


class InactiveHandleError(VlmpruneError):
    """A handle was used after `unwrap()` or after the model was wrapped again."""


class PromptError(VlmpruneError):
    """A processor makes no inputs of pictures and texts, such as a picture 300 times as high as wide."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: `did you mean 'fastv'?`, or the whole list when nothing is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}."
