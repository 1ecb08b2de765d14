"""Every exception a user can meet. Each message is one sentence: what is wrong, the bad value, what to do."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

VIDEO = "The prompt has a video, which is not supported yet; ask about its frames as a list of images."


class VlmpruneError(ValueError):
    """Base class of all errors raised for user input."""


class UnsupportedModelError(VlmpruneError):
    """The model is not a vision-language model, or its family has no adapter."""


class InactiveHandleError(VlmpruneError):
    """A handle was used after `unwrap()` or after the model was wrapped again."""


class PromptError(VlmpruneError):
    """A processor rejects images and texts, such as an image 300 times as high as wide."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: `did you mean 'fastv'?`, or the whole list when nothing is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}."


def check_call(what: str, signature: inspect.Signature, given: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Refuse arguments that a call does not take; Python's own message would name `__init__` and no remedy.

    Raises:
        VlmpruneError: an unknown or missing option, too many without a name, or one given twice.
    """
    kinds = inspect.Parameter
    free = {one.kind for one in signature.parameters.values()}
    variable = (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    named = {one.name: one for one in signature.parameters.values() if one.kind not in variable}
    placed = [name for name, one in named.items() if one.kind is not kinds.KEYWORD_ONLY]
    known = [name for name in named if name != "self"]
    for name in options if kinds.VAR_KEYWORD not in free else ():
        if name not in named:
            remedy = nearest(name, known) if known else "it takes none, so leave it out."
            raise VlmpruneError(f"{what} has no option {name!r}; {remedy}")
    if len(given) > len(placed) and kinds.VAR_POSITIONAL not in free:
        order = ", ".join(name for name in placed if name != "self") or "nothing"
        raise VlmpruneError(
            f"{what} takes {order} without a name, and got {given[len(placed)]!r:.60} behind; give options by name."
        )
    for name in placed[: len(given)]:
        if name in options:
            raise VlmpruneError(f"{what} got {name!r} twice, once of them without its name; give it once.")
    for name in [*placed[len(given) :], *(name for name in known if name not in placed)]:
        if named[name].default is kinds.empty and name not in options:
            raise VlmpruneError(f"{what} needs {name}; pass {name}=... to it.")


def checked(function: F) -> F:
    """A public function that reports wrong arguments in one sentence (see `check_call`)."""
    signature, what = inspect.signature(function), f"{function.__name__}()"
    if function.__name__ == "__init__":
        what = f"{function.__qualname__.split('.')[0]}()"

    @functools.wraps(function)
    def call(*given: Any, **options: Any) -> Any:
        check_call(what, signature, given, options)
        return function(*given, **options)

    return cast(F, call)
