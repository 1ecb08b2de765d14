"""Every threshold and budget of the captioner, by name."""

from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import VlmpruneError
from ..methods.declared import checked_option, number
from .prompts import Prompts

VIEWS = ("crop", "in_place")


def _fraction(default: float) -> Any:
    return field(default=default, metadata=number(float, 0, 1))


def _count(default: int) -> Any:
    return field(default=default, metadata=number(int, 1))


def _temperature(default: float) -> Any:
    return field(default=default, metadata=number(float, 0, 100))


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
    Aggregate: `filter` off keeps every sentence; `keep_score` a contradictory or unique one needs more than.

    Raises:
        VlmpruneError: a value out of its range.
    """

    score_threshold: float = _fraction(0.3)
    fallback_boxes: int = _count(2)
    merge_iou: float = _fraction(0.3)
    assign_share: float = _fraction(0.3)
    semantic: bool = True
    semantic_iou: float = _fraction(0.4)
    patch_iou: float = _fraction(0.4)
    samples: int = _count(3)
    temperature: float = _temperature(0.7)
    global_temperature: float = _temperature(0.2)
    max_new_tokens: int = _count(512)
    batch_size: int = _count(8)
    view: str = "crop"
    filter: bool = True
    keep_score: float = _fraction(0.3)
    prompts: Prompts = field(default_factory=Prompts)

    def __post_init__(self) -> None:
        for option in fields(self):
            object.__setattr__(self, option.name, checked_option(option, getattr(self, option.name)))
        if self.view not in VIEWS:
            raise VlmpruneError(f"view must be one of {', '.join(VIEWS)}, got {self.view!r}.")
        if not isinstance(self.prompts, Prompts):
            raise VlmpruneError(f"prompts must be a vlmprune.captioner.Prompts, got {self.prompts!r:.80}.")
