"""What a cache holds: counted, and measured in the bytes of its tensors' storages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class CacheReport:
    """Of a call whose cache was cut, or grew in a buffer.

    `saves`: what, in words; empty where the budget was everything that was there. `lengths`: per layer, entries after
    the prompt, padding included (0 of one without keys). `per_head`: the same of an average key head, fewer where heads
    hold different numbers. `kept`: per layer the prompt positions of its entries, [B, C] or, where heads hold others,
    [B, G, C], -1 at filler; None where all are there. `uncut`: layers with a cache of their own that the method left
    whole. `bytes_prefill`, `bytes_end`: what the cache's tensors occupy after the prompt and after the last token, by
    their storages: what a view keeps alive counts, and so do beams and a buffer's spare room. `attended`: per layer,
    the entries that the last step's row attended to, of a key head on average; `steps`: the same of every step.
    """

    saves: list[str]
    lengths: list[int]
    kept: list[Tensor | None]
    bytes_prefill: int
    uncut: list[int] = field(default_factory=list)
    per_head: list[float] = field(default_factory=list)
    bytes_end: int = 0
    attended: list[float] = field(default_factory=list)
    steps: list[list[float]] = field(default_factory=list)

    def stepped(self, cache: Any, attended: Mapping[int, int]) -> None:
        """A step has run; by layer what it read of the cache, if not all."""
        self.steps.append([attended.get(i, mean_entries(cache, i)) for i in range(len(self.lengths))])

    def ended(self, cache: Any, attended: Mapping[int, int]) -> None:
        """The call is over; what its cache holds now, and by layer what the last step read of it, if not all."""
        self.bytes_end = stored_bytes(cache)
        self.attended = [attended.get(i, mean_entries(cache, i)) for i in range(len(self.lengths))]

    def rows(self) -> list[tuple[str, str]]:
        """What a table of the report says of it."""
        end = f", {self.bytes_end / 1e6:.3f} at the end" if self.bytes_end else ""
        return [
            ("  saves", ", ".join(self.saves) or "nothing"),
            ("  stored MB", f"{self.bytes_prefill / 1e6:.3f} after the prompt{end}"),
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable, without the positions and without every step."""
        record = dict(vars(self))
        del record["kept"], record["steps"]
        return record


def entries_of(cache: Any, layer: int) -> int:
    """How many entries a layer of a cache holds, 0 of one without keys."""
    keys = getattr(cache.layers[layer], "keys", None) if layer < len(cache.layers) else None
    return 0 if keys is None or keys.dim() < 3 else int(keys.shape[-2])


def mean_entries(cache: Any, layer: int) -> float:
    """How many entries a key head of a layer holds on average: in most layers all hold as many."""
    parts = getattr(cache.layers[layer], "parts", None) if layer < len(cache.layers) else None
    if not parts:
        return entries_of(cache, layer)
    heads = sum(part.keys.shape[1] for part in parts)
    return float(sum(part.keys.shape[1] * part.keys.shape[2] for part in parts) / heads)


def stored_bytes(cache: Any) -> int:
    """Bytes of the storages of a cache's tensors, each counted once."""
    storages: dict[int, int] = {}
    for layer in cache.layers:
        for part in getattr(layer, "parts", (layer,)):
            for value in vars(part).values():
                several = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
                for tensor in several:
                    if isinstance(tensor, Tensor) and tensor.dim() > 0:
                        storage = tensor.untyped_storage()
                        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
