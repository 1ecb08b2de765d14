"""A row of the captions' table: the captions of one way to make them, what each got right, and what all cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from demos.tiny_vlm.questions import caption
from demos.tiny_vlm.scenes import Scene
from eval.captions.metrics import Counts, count, summary
from eval.captions.text_metrics import text_metrics
from vlmprune.captioner.vlm import CaptionCost


@dataclass
class CaptionRow:
    """A way to caption: its captions so far, what each got right, and what all cost."""

    name: str
    method: str = "none"
    keep: float | None = None
    texts: list[str] = field(default_factory=list)
    cost: CaptionCost = field(default_factory=CaptionCost)
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str, float | None]:
        return self.name, self.method, self.keep

    def counts(self, scenes: Sequence[Scene]) -> list[Counts]:
        """What each caption got right; the row's captions are those of the first scenes."""
        return [count(text, scene) for text, scene in zip(self.texts, scenes, strict=False)]

    def join(self, other: CaptionRow) -> None:
        """Add what another portion of the scenes gave."""
        self.texts += other.texts
        self.cost.add(other.cost)
        self.seconds += other.seconds

    def record(self, scenes: Sequence[Scene]) -> dict[str, Any]:
        """JSON-serialisable; costs are means per image."""
        n, counts, spent = len(self.texts), self.counts(scenes), self.cost
        out: dict[str, Any] = {"name": self.name, "method": self.method, "keep": self.keep, "scenes": n}
        cost = {
            "describe_calls": spent.calls["describe"] / n,
            "match_calls": spent.calls["match"] / n,
            "visual_tokens": spent.visual_tokens / n,
            "layer_avg_tokens": spent.layer_avg_tokens / n,
            "prefill_flops": None if spent.prefill_flops is None else spent.prefill_flops / n,
            "images_encoded": spent.images_encoded / n,
            "seconds": self.seconds / n,
        }
        references = [[caption(scene)] for scene in scenes[:n]]
        totals = {name: sum(getattr(one, name) for one in counts) for name in vars(Counts())}
        return out | {
            "quality": summary(counts),
            "text": text_metrics(self.texts, references),
            "counts": totals,
            "cost": cost,
        }
