"""The oracle of attention ranking: the large model's own map, from a full run of its own that comes first."""

from dataclasses import dataclass
from typing import ClassVar

from .guided import Guided


@dataclass(frozen=True)
class FastVOracle(Guided):
    """An upper reference, not a method to use: it costs a full run of the model before the pruned one.

    The model answers unpruned; its attention over all layers, heads, text rows and steps ranks its visual tokens, as
    the small model's does in SGL.

    When: in studies, as what SGL would do with a perfect guide. It never saves anything.
    """

    name: ClassVar[str] = "fastv-oracle"
    measure_consistency = False
