"""Several methods on one model: at most one pruner, at most one cache method and any number of interventions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import VlmpruneError
from .base import Intervention, Method
from .kv.base import CacheMethod


@dataclass(frozen=True)
class Combined(Method):
    """A list of methods, made by `wrap` where it is given one of several.

    Raises:
        VlmpruneError: two pruners, two cache methods, or the same intervention twice.
    """

    parts: tuple[Method, ...]

    def __post_init__(self) -> None:
        names = ", ".join(part.title for part in self.parts)
        for kind, held in (
            ("cache method", [isinstance(part, CacheMethod) for part in self.parts]),
            ("pruner", [not isinstance(part, CacheMethod | Intervention) for part in self.parts]),
        ):
            if sum(held) > 1:
                raise VlmpruneError(f"The list of methods holds {names}; pass at most one {kind}.")
        twice = [part.title for i, part in enumerate(self.parts) if type(part) in map(type, self.parts[:i])]
        if twice:
            raise VlmpruneError(f"The list of methods holds {twice[0]} twice; pass each intervention once.")

    @property
    def title(self) -> str:
        return "+".join(part.title for part in self.parts)

    def describe(self) -> dict[str, Any]:
        """`name` like "fastv+var", and each part's options under its own name."""
        records = [part.describe() for part in self.parts]
        return {"name": self.title} | {record.pop("name"): record for record in records}


def parts_of(method: Method) -> Sequence[Method]:
    """The methods in a list of them, or the one."""
    return method.parts if isinstance(method, Combined) else (method,)
