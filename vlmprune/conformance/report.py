"""What `check` found, and how it reads."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerCheck:
    """Pruning before decoder layer `layer`: the largest difference of a logit, how far pruning itself moved one, and
    where the difference begins (None: nowhere). Where there is nothing to compare, `worst` is NaN."""

    layer: int
    worst: float
    moved: float
    first_difference: str | None


@dataclass(frozen=True)
class CheckReport:
    """What `check` found: one `LayerCheck` for each layer, and the difference that rounding alone makes, `bound`.

    `kinds`: what each decoder layer showed itself to be: "full", "window of 512", "chunk" or "recurrent". `notes`: what
    could not be tried.
    """

    model_type: str
    adapter: str
    bound: float
    kinds: list[str] = field(default_factory=list)
    layers: list[LayerCheck] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def worst(self) -> float:
        """The largest difference of a logit between pruned and masked."""
        return max((one.worst for one in self.layers), key=lambda worst: (math.isnan(worst), worst))

    @property
    def ok(self) -> bool:
        """Whether no logit differs by more than rounding."""
        return all(one.worst <= self.bound for one in self.layers)

    @property
    def first_difference(self) -> str | None:
        """The first step and layer whose output differs, None where none does."""
        return next((one.first_difference for one in self.layers if one.first_difference), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable; a number that is none, NaN or infinity, is None."""
        found = {"ok": self.ok, "worst": self.worst, "first_difference": self.first_difference, **asdict(self)}
        found["layers"] = [{name: _number(value) for name, value in one.items()} for one in found["layers"]]
        return {name: _number(value) for name, value in found.items()}

    def __str__(self) -> str:
        counts = {kind: self.kinds.count(kind) for kind in self.kinds}
        lines = [f"{self.model_type} ({self.adapter} adapter): {'exact' if self.ok else 'NOT exact'}"]
        lines.append("decoder layers: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
        lines.append(f"{'before layer':>12}  {'worst':>9}  {'bound':>9}  {'moved':>9}  first difference")
        for one in self.layers:
            where = one.first_difference or "none"
            lines.append(f"{one.layer:>12}  {one.worst:>9.1e}  {self.bound:>9.1e}  {one.moved:>9.1e}  {where}")
        return "\n".join([*lines, *self.notes])


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
