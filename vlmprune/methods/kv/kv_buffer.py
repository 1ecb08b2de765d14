"""kv-buffer: no copy of the cache in each step."""

from dataclasses import dataclass
from typing import ClassVar

from .base import CacheMethod


@dataclass(frozen=True)
class Buffer(CacheMethod):
    """The cache grows in a buffer instead of being copied in each step; nothing is cut. Cuts have the same option.

    When: long answers on a CPU, where copying a long cache takes longer than attending to it; plain or beside a pruner.
    """

    name: ClassVar[str] = "kv-buffer"
