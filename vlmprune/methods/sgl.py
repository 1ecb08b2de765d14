"""SGL (Zhao et al., CVPR 2025, arXiv 2412.03324): a small model ranks the large one's visual tokens, or answers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, ClassVar

from torch import Tensor

from ..errors import VlmpruneError
from ..flow.select import Selection, check_keep
from .base import Pruner, PruningContext
from .declared import number
from .guided import Guided
from .per_image import ImageContext, PerImage
from .scope import coverage_of


@dataclass(frozen=True)
class GuideFirst:
    """As the last base of a method it makes the guide the first option: dataclasses take fields from there on."""

    guide: Any


@dataclass(frozen=True)
class SGL(Guided, PerImage, GuideFirst):
    """A small model answers first; its attention ranks the large one's visual tokens.

    Importance of a visual token is the attention it gets in the small model, summed over all layers, heads, text rows
    of the prompt and steps of the answer (section 3.1). Where the small model is sure enough, the large one never runs
    (section 3.2): S = (confidence + consistency) / 2 >= `exit_at`.

    The most important tokens often show the same thing. `diversity` (ours) chooses them greedily instead, each by how
    much of the image it covers beside those chosen before, as SCOPE does, with the guide's importance as the weight.

    Departures from the official code: rows of the prompt are those of text behind the image, where that code starts at
    the last visual token; sums are fp32 instead of the model's precision; exits run, where that code scores them and
    runs the large model on every sample; batches, other grids and other tokenizers work.

    When: a small model of the same kind is at hand and the large one, or its visual prompt, is large enough to pay for
    a second model (`vlmprune plan --guide`). With `exit_at` the large model is spared where the small one suffices.
    Always compare with the small model alone.

    Args:
        guide: the small model, of any supported family, loaded.
        layer: drop before this layer of the large model; None is the paper's rule, `int(keep * L)`.
        exit_at: threshold on S in 0..1, None = never exit; `calibrate` picks it.
        guide_processor: the guide's processor, where it is not the model's.
        exclude_sinks: leave the guide's visual sinks out of the ranking.
        normalise_consistency: geometric mean of the answer tokens' probabilities; False is the paper's code, their
            product, which collapses for long answers.
        diversity: exponent of the importance as the weight of a token's coverage (1 fits; towards 0 the question counts
            less); None is the paper: the most important tokens.
        guide_steps: rank from the prompt and at most `guide_steps - 1` steps; without `exit_at` the guide stops there.
        guide_frames, guide_scale: of clips that `ask` gets, show the guide at most so many evenly spaced frames, and
            their sides only so long (0..1; towers of one fixed size see as much anyway). What it finds important is
            moved to the model's tokens by place and time. None: what the model sees.
        guide_keep: drop the guide's own visual tokens too (ours): halfway through its layers so many, as in `keep`, go
            on, the most important so far, and only they gain more. None: none are dropped.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "sgl"
    exit_at: float | None = field(default=None, metadata=number(float, 0, 1))
    guide_processor: Any = None
    exclude_sinks: bool = False
    normalise_consistency: bool = True
    guide_steps: int | None = field(default=None, metadata=number(int, 1))
    diversity: float | None = field(default=None, metadata=number(float, 0))
    guide_frames: int | None = field(default=None, metadata=number(int, 1) | {"of_videos": True})
    guide_scale: float | None = field(default=None, metadata=number(float, 0.01, 1) | {"of_videos": True})
    guide_keep: float | int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guide is None or isinstance(self.guide, str):
            raise VlmpruneError(f"guide must be a loaded small vision-language model, got {self.guide!r}.")
        if self.guide_keep is not None:
            check_keep(self.guide_keep, "guide_keep")

    def select(self, prompt: PruningContext) -> Selection:
        return Pruner.select(self, prompt) if self.diversity is None else PerImage.select(self, prompt)

    @property
    def ranks(self) -> bool:
        return True  # with `diversity` the importance still says how many

    def _counts(self, prompt: PruningContext, scores: Sequence[Tensor] = ()) -> list[list[int]]:
        return super()._counts(prompt, scores or self.score(prompt))

    def choose(self, image: ImageContext) -> Tensor:
        assert self.diversity is not None
        importance = self.score(image.prompt)[image.sample][image.span.positions].double().clamp(min=0)
        return coverage_of(image.hidden.detach(), image.count, importance**self.diversity)

    def calibrate(self, model: Any, data: Iterable[Any], **options: Any) -> Any:
        """Pick `exit_at` (and `keep`) on held-out data: see `vlmprune.calibrate.exit_threshold.calibrate`.

        Returns:
            A `vlmprune.calibrate.exit_threshold.Calibration`; its `method` is the one to use.
        """
        return resolve_name("vlmprune.calibrate.exit_threshold:calibrate")(self, model, data, **options)
