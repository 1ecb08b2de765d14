"""Every threshold and budget of the captioner, by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..errors import VlmpruneError
from .prompts import Prompts

VIEWS = ("crop", "in_place")


@dataclass(frozen=True)
class CaptionConfig:
    """How `PatchCaptioner` works; the defaults are those of Patch Matters (arXiv 2504.06666).

    Divide: `score_threshold` a box needs more than; `fallback_boxes` taken where none passes; `merge_iou` above which
    two boxes become one; `assign_share` of its own area that takes an object into a quadrant; `semantic` whether to
    look for a semantic patch, `semantic_iou` its largest IoU with the image; `patch_iou` above which two
    adjacent patches are compared.
    Describe: `samples` of each patch at `temperature`, one of the whole image at `global_temperature`, of up to
    `max_new_tokens`; `batch_size` crops (or statements) per forward; `view`: "crop" shows the model the patch alone,
    "in_place" the whole canvas with everything outside the patch painted over, and the pieces of objects that it cuts,
    for models whose words depend on place and scale.
    Aggregate: `filter` off keeps every sentence; `keep_score` a contradictory or unique one needs more than;
    `check_global` scores and filters the whole image's own sentences too (the paper does not); the LLM's temperatures
    `group_temperature`, `merge_temperature`, `fuse_temperature`.

    Raises:
        VlmpruneError: a value out of its range.
    """

    score_threshold: float = 0.3
    fallback_boxes: int = 2
    merge_iou: float = 0.3
    assign_share: float = 0.3
    semantic: bool = True
    semantic_iou: float = 0.4
    patch_iou: float = 0.4
    samples: int = 3
    temperature: float = 0.7
    global_temperature: float = 0.2
    max_new_tokens: int = 512
    batch_size: int = 8
    view: str = "crop"
    filter: bool = True
    keep_score: float = 0.3
    check_global: bool = False
    group_temperature: float = 0.2
    merge_temperature: float = 0.6
    fuse_temperature: float = 0.2
    prompts: Prompts = field(default_factory=Prompts)

    def __post_init__(self) -> None:
        for name in ("score_threshold", "merge_iou", "assign_share", "semantic_iou", "patch_iou", "keep_score"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value <= 1):
                raise VlmpruneError(f"{name} must be a number from 0 to 1, got {value!r}.")
        for name in ("samples", "fallback_boxes", "max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise VlmpruneError(f"{name} must be an int >= 1, got {value!r}.")
        for name in (one for one in vars(self) if one.endswith("temperature")):
            value = getattr(self, name)
            if not (_is_number(value) and value >= 0 and math.isfinite(value)):
                raise VlmpruneError(f"{name} must be 0 (greedy) or a positive number, got {value!r}.")
        if self.view not in VIEWS:
            raise VlmpruneError(f"view must be one of {', '.join(VIEWS)}, got {self.view!r}.")
        if not isinstance(self.prompts, Prompts):
            raise VlmpruneError(f"prompts must be a vlmprune.captioner.Prompts, got {self.prompts!r:.80}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
