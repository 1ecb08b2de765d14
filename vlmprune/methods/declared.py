"""What a method's class declares and what its options are set to, checked: a wrong word or value always raises."""

import difflib
import inspect
import math
import numbers
from dataclasses import MISSING, Field, fields
from typing import Any

from ..errors import VlmpruneError

# Those of Pruner.
FLAGS = ("reads_attention", "reads_keys", "reads_vision", "reads_text", "reads_question", "reads_own_layer")
SWITCHES = (*FLAGS, "exclude_sinks", "vision_as_one")
_NEAR = 0.85  # "scores" is near "score"; "selection" is another word than "select"


def check_names(cls: type[Any], base: type[Any]) -> None:
    """Refuse names in the body of a class that are nearly like one of `base`, which declares what methods of this kind
    have, and declarations of another type than there."""
    options = inspect.get_annotations(cls)
    body: dict[str, Any] = {**dict.fromkeys(options), **vars(cls)}
    inherited = {name for part in cls.__mro__[1:] for name in vars(part)}
    words = [name for name in dir(base) if not name.startswith("_") and callable(getattr(base, name))]
    for name, value in body.items():
        flag = name in FLAGS or (name in SWITCHES and name not in options)  # an option's value comes later
        if flag and not isinstance(value, bool):
            raise VlmpruneError(f"{cls.__name__} declares {name} = {value!r}; make it True or False.")
        if name.startswith("_") or name in inherited or name in SWITCHES:
            continue
        call = callable(value) or isinstance(value, property | classmethod | staticmethod)
        close = difflib.get_close_matches(name, words if call else SWITCHES, n=1, cutoff=_NEAR)
        # A helper called `scores` is fine in a class that defines `score`.
        own = call and close and getattr(cls, close[0]) is not getattr(base, close[0])
        if close and not own:
            raise VlmpruneError(
                f"{cls.__name__} declares {name!r}, which means nothing to {base.__name__}; did you mean {close[0]!r}?"
            )
        if name.startswith("reads_") and not call:
            raise VlmpruneError(
                f"{cls.__name__} declares {name!r}, which no method can read; choose of {', '.join(FLAGS)}."
            )


def check_options(cls: type[Any], root: type[Any]) -> None:
    """Refuse options of a finished class that its constructor would not take, and defaults that it would not use."""
    options = {field.name: field for field in fields(cls)}
    for part in cls.__mro__[: cls.__mro__.index(root)]:
        for name, kind in inspect.get_annotations(part).items():
            if name not in options and "ClassVar" not in str(kind) and not name.startswith("_"):
                raise VlmpruneError(
                    f"{part.__name__} declares the option {name!r} but is no dataclass, so nobody could set it; put "
                    "@dataclass(frozen=True) above the class, below register_method."
                )
        for name, value in part.__dict__.items():
            default = options[name].default if name in options else MISSING
            if default is not MISSING and value is not default and not hasattr(value, "__get__") and part is cls:
                raise VlmpruneError(
                    f"{part.__name__} sets {name} = {value!r} without a type, which its constructor does not see; "
                    f"write {name}: {type(value).__name__} = {value!r}, under @dataclass(frozen=True)."
                )


def number(kind: type[float], low: float, high: float = math.inf) -> dict[str, Any]:
    """`dataclasses.field(metadata=...)` of an option that is an int or a float from `low` to `high`."""
    return {"number": (kind, low, high)}


def checked_option(option: Field[Any], value: Any) -> Any:
    """The value of an option; a number of numpy becomes Python's, so that reports can be written as JSON.

    Refused where it is not a bool and the default is, or outside of the option's `number`; None may be the default.
    """
    if isinstance(option.default, bool) and not isinstance(value, bool):
        raise VlmpruneError(f"{option.name} must be True or False, got {value!r:.60}.")
    if isinstance(value, numbers.Real) and not isinstance(value, bool | int | float):
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
    if "number" in option.metadata and not (value is None and option.default is None):
        kind, low, high = option.metadata["number"]
        fine = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        if not fine or not low <= value <= high:  # NaN fails too
            wanted = "an int" if kind is int else "a number"
            wanted += f" >= {low}" if high == math.inf else f" from {low} to {high}"
            wanted += " or None" if option.default is None else ""
            raise VlmpruneError(f"{option.name} must be {wanted}, got {value!r:.60}.")
    return value


def check_layer(layer: Any) -> None:
    """Validate a layer option by itself; whether the model has it is known at wrap time."""
    fine = isinstance(layer, int | float) and not isinstance(layer, bool) and layer >= 0  # NaN fails too
    if not fine or (isinstance(layer, float) and layer >= 1):
        raise VlmpruneError(
            "layer must be an int >= 0 (0 = before the language model) or a float in [0, 1) (a fraction of the depth), "
            f"got {layer!r:.60}."
        )
