"""SGL (Zhao et al., CVPR 2025, arXiv 2412.03324): a small model ranks the large one's visual tokens, or answers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pkgutil import resolve_name
from typing import Any, ClassVar

from ..errors import VlmpruneError
from .guided import Guided, GuideSettings


@dataclass(frozen=True, init=False)
class SGL(Guided):
    """A small model answers first; its attention ranks the large one's visual tokens.

    Importance of a visual token is the attention it gets in the small model, summed over all layers, heads, text rows
    of the prompt and steps of the answer (section 3.1). Where the small model is sure enough, the large one never runs
    (section 3.2): S = (confidence + consistency) / 2 >= `exit_at`.

    Args:
        guide: the small model, of any supported family, loaded. keep, positions: as in `Pruner`.
        layer: drop before this layer of the large model; None is the paper's rule, `int(keep * L)`.
        exit_at: threshold on S in 0..1, None = never exit; `calibrate` picks it.
        guide_processor: the guide's processor, where it is not the model's.
        exclude_sinks: leave the guide's visual sinks out of the ranking.
        normalise_consistency: geometric mean of the answer tokens' probabilities; False is the paper's code, their
            product, which collapses for long answers.
        guide_steps: rank from the prompt and at most `guide_steps - 1` steps; without `exit_at` the guide stops there.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "sgl"
    # Fields for repr, comparison and the report; the constructor below takes the guide first.
    guide: Any = None
    exit_at: float | None = None
    guide_processor: Any = None
    exclude_sinks: bool = False
    normalise_consistency: bool = True
    guide_steps: int | None = None

    def __init__(
        self,
        guide: Any,
        keep: float | int = 0.25,
        layer: int | float | None = None,
        exit_at: float | None = None,
        guide_processor: Any = None,
        exclude_sinks: bool = False,
        normalise_consistency: bool = True,
        guide_steps: int | None = None,
        *,
        positions: str = "original",
    ) -> None:
        values = dict(locals())
        for field in fields(self):
            object.__setattr__(self, field.name, values[field.name])
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        exit_at, steps = self.exit_at, self.guide_steps
        number = isinstance(exit_at, int | float) and not isinstance(exit_at, bool) and not math.isnan(exit_at)
        if exit_at is not None and not (number and 0 <= exit_at <= 1):
            raise VlmpruneError(
                f"exit_at={exit_at!r} is no threshold; use a number from 0 to 1, or None to never exit."
            )
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise VlmpruneError(f"guide_steps={steps!r} is no number of tokens; use 1 or more, or None for all.")
        if self.guide is None or isinstance(self.guide, str):
            raise VlmpruneError(f"guide={self.guide!r} is no model; pass a loaded small vision-language model.")

    def guide_settings(self) -> GuideSettings:
        return GuideSettings(
            self.guide,
            self.guide_processor,
            self.exit_at,
            self.guide_steps,
            normalise=self.normalise_consistency,
            exclude_sinks=self.exclude_sinks,
        )

    def calibrate(self, model: Any, data: Iterable[Any], **options: Any) -> Any:
        """Pick `exit_at` (and `keep`) on held-out data: see `vlmprune.calibrate.exit_threshold.calibrate`.

        Returns:
            A `vlmprune.calibrate.exit_threshold.Calibration`; its `method` is the one to use.
        """
        return resolve_name("vlmprune.calibrate.exit_threshold:calibrate")(self, model, data, **options)
