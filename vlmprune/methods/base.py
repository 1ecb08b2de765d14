"""What a method is. A pruner's body is one pure function: `score`, or `select` where scores are not enough.

Shapes: B batch, S sequence, V visual tokens of a sample, D width, L decoder layers.
"""

from __future__ import annotations

import inspect
import itertools
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..errors import VlmpruneError, check_call
from ..flow.frames import FRAMES, by_frame, counts_for, frames_of, text_weights
from ..flow.locate import ImageSpan, SampleLayout, last_valid
from ..flow.prompt_state import VisionStats
from ..flow.returned import checked_scores
from ..flow.score import visual_columns
from ..flow.select import Selection, check_keep, top_k_per_image, top_p_counts
from .declared import check_layer, check_names, check_options, checked_option, number

if TYPE_CHECKING:
    from ..attention.observer import AttentionObserver
    from ..families import Family


@dataclass(frozen=True, kw_only=True)
class PruningContext:
    """What a pruner may look at, at the decoder layer before which it prunes.

    `layouts`: where each sample's visual tokens are. `hidden` [B, S, D]: hidden states entering the layer, or for
    cross-attention families the cross-attention states. `input_ids` [B, S] and `valid` [B, S], the padding mask; both
    and the layouts are on the CPU, whatever the model runs on. `attention` [B, S or cross states]: attention received
    by each position from the last prompt token, mean over heads, in the layer before (only for methods that set
    `reads_attention`), or in the layer itself as it would be without the drop (`reads_own_layer` too); the sum over
    `query_positions` where a method names them. `keys` [B, H, S, D]: rotated keys of
    the layer before (only for `reads_keys`). `importance`: per sample [V], what a guide made of the visual tokens (only
    for guided methods). `sinks`: per sample bool [V], the visual sinks (only for methods that read attention and set
    `exclude_sinks`). `vision`: per sample, attention and keys of the vision tower (only for `reads_vision`).
    `last_norm`: the language model's last norm, if it has one; see `normed`.

    Methods of several stages see at each what the earlier ones have left: `layouts` and `hidden` of the shortened
    sequence. `stage` counts the `stages` from 0, `unpruned` are the layouts at the start.
    """

    layouts: list[SampleLayout]
    hidden: Tensor
    input_ids: Tensor
    valid: Tensor
    layer: int
    attention: Tensor | None = None
    importance: list[Tensor] | None = None
    sinks: list[Tensor] | None = None
    keys: Tensor | None = None
    vision: list[VisionStats] | None = None
    last_norm: Callable[[Tensor], Tensor] | None = None
    stage: int = 0
    stages: int = 1
    unpruned: list[SampleLayout] = field(default_factory=list)

    def sample_hidden(self, sample: int) -> Tensor:
        """The hidden states of one sample's visual tokens: [V, D]."""
        return self.hidden[sample, self.layouts[sample].slots.to(self.hidden.device)]

    def normed(self, states: Tensor) -> Tensor:
        """Hidden states [..., D] behind the language model's last norm, without a gradient."""
        with torch.no_grad():
            return states.detach() if self.last_norm is None else self.last_norm(states.detach())

    @property
    def received(self) -> list[Tensor]:
        """`attention` at the visual tokens of each sample: [V]."""
        assert self.attention is not None, "the session probes every method that sets reads_attention"
        return visual_columns(self.attention, self.layouts)

    def question(self, sample: int) -> Tensor:
        """Positions 0..S-1 of one sample's text tokens after its last visual token.

        Of all its text if none follow, and the last token's, though it is visual, of a prompt without any text.
        """
        text = self.valid[sample].clone()
        slots = self.layouts[sample].slots
        text[slots] = False
        after = text.clone()
        after[: int(slots.max()) + 1 if len(slots) else 0] = False
        if not bool(text.any()):
            return last_valid(self.valid[sample : sample + 1])
        return (after if after.any() else text).nonzero()[:, 0]


class Checked(ABCMeta):
    """The type of method classes: wrong options of a constructor raise a `VlmpruneError`."""

    def __call__(cls, *given: Any, **options: Any) -> Any:
        check_options(cls, Method)
        title = getattr(cls, "name", "") or cls.__name__
        check_call(f"The method {title!r}", cls.__signature__, given, options)
        if missing := sorted(cls.__abstractmethods__):
            raise VlmpruneError(f"The method {cls.__name__} has no {missing[0]}(); define it.")
        return super().__call__(*given, **options)

    @property
    def __signature__(cls) -> inspect.Signature:
        made: Any = cls
        return inspect.Signature(list(inspect.signature(made.__init__).parameters.values())[1:])


@dataclass(frozen=True)
class Method(metaclass=Checked):
    """Base of pruners, attention interventions and cache methods."""

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        kinds = ("Pruner", "Intervention", "CacheCut", "CacheReader", "CacheMethod")
        base = next((part for part in cls.__mro__[1:] if part.__name__ in kinds), None)
        if base is not None:
            check_names(cls, base)

    def __post_init__(self) -> None:
        """Check the options; subclasses check further ones of theirs."""
        for option in fields(self):
            object.__setattr__(self, option.name, checked_option(option, getattr(self, option.name)))

    @property
    def title(self) -> str:
        """What the method is called, registered or not."""
        return self.name or type(self).__name__

    def describe(self) -> dict[str, Any]:
        """Name and options, JSON-serialisable (for the report)."""
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        for option in fields(self):  # no word about videos where there is nothing to say
            if option.metadata.get("of_videos") and options[option.name] == option.default:
                del options[option.name]
        return {"name": self.title, **{k: plain(v) for k, v in options.items()}}


def plain(value: Any) -> Any:
    """A JSON-serialisable stand-in for an option's value."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return type(value).__name__


class Intervention(Method):
    """Changes attention without dropping anything; any number of them combine with one pruner."""

    @abstractmethod
    def observer(self, family: Family, model: Any) -> AttentionObserver:
        """What edits the attention calls of this model, created for every wrap.

        Raises:
            VlmpruneError: the method and the model do not fit.
        """


@dataclass(frozen=True)
class Pruner(Method):
    """Drops visual tokens just before one decoder layer.

    The last token of a prompt is always kept, also where it is visual; it then counts towards the budget of its image.

    Args:
        keep: float in (0, 1] = fraction of each image's visual tokens; int >= 1 = tokens per image. A video counts as
            one image.
        layer: int k = just before 0-based decoder layer k (0 = before the language model); float f = int(f * L).
        positions: "original" (kept tokens keep their position ids) or "compact" (re-indexed, as stock serving
            engines do).
        top_p: of a method whose scores rank the tokens: keep of each image only the best ones that together hold this
            fraction of its scores' sum, at most `keep` and at least `floor` of them, so that images where few tokens
            matter keep fewer (as Sparse VideoGen2, arXiv 2505.18875, chooses keys). None keeps `keep`.
        floor: budget in the form of `keep` below which `top_p` does not go.
        frames: how a video's budget lies over its frames: "shared" (the best tokens, whichever frame they are of, so
            that a frame may keep none), "even" (every frame has its own, equal budget) or "text" (budgets by how much
            each frame is like the question).
    Raises:
        VlmpruneError: an option out of range.
    """

    keep: float | int = 0.25
    layer: int | float = 0
    positions: str = field(default="original", kw_only=True)
    top_p: float | None = field(default=None, kw_only=True, metadata=number(float, 0, 1))
    floor: float | int = field(default=1, kw_only=True)
    frames: str = field(default="shared", kw_only=True, metadata={"of_videos": True})
    # Whether `PruningContext.sinks` is filled in for a method that reads attention. No field: it may be made an option.
    exclude_sinks = False
    # Whether `PruningContext.vision` is of the tower's last layer, its heads as one; by default it is of the layer
    # whose output the model uses, its heads averaged. No field either.
    vision_as_one = False
    # What the method reads in addition to the hidden states of the visual tokens.
    reads_attention: ClassVar[bool] = False
    reads_keys: ClassVar[bool] = False
    reads_own_layer: ClassVar[bool] = False  # both not of the layer before, but of the one about to run
    reads_vision: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False  # hidden states of text rows, which cross-attention families keep apart
    # The text behind the image in any other way, `PruningContext.question` included.
    reads_question: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_keep(self.keep)
        if self.layer is not None or type(self).layer is not None:  # None is a rule of some methods
            check_layer(self.layer)
        if not isinstance(self.positions, str) or self.positions not in ("original", "compact"):
            raise VlmpruneError(f"positions={self.positions!r:.60} is unknown; use 'original' or 'compact'.")
        check_keep(self.floor, "floor")
        if self.top_p is not None and not self.ranks:
            raise VlmpruneError(
                f"top_p={self.top_p!r} needs a method that chooses once and by one score a token, which {self.title!r} "
                "does not; use keep alone."
            )
        if not isinstance(self.frames, str) or self.frames not in FRAMES:
            raise VlmpruneError(f"frames={self.frames!r:.60} is unknown; use 'shared', 'even' or 'text'.")
        if self.frames != "shared" and (not self.by_frames or self.top_p is not None):
            raise VlmpruneError(
                f"frames={self.frames!r} needs a method that chooses once, image by image, and without top_p, which "
                f"{self.title!r} does not; use frames='shared'."
            )
        if self.top_p is None and self.floor != 1:
            raise VlmpruneError(f"floor={self.floor!r} is the least that top_p keeps; give top_p too.")

    @property
    def asks(self) -> bool:
        """Whether the ranking depends on the text behind the image, so that it is wrong without it."""
        return self.reads_question or self.reads_text or self.reads_attention or self.frames == "text"

    @property
    def ranks(self) -> bool:
        """Whether scores alone decide what stays, so that they can decide how much too."""
        own, base = type(self), Pruner
        return own.score is not base.score and (own.select, own._counts) == (base.select, base._counts)

    @property
    def by_frames(self) -> bool:
        """Whether the frames of a video can have budgets of their own."""
        return self.ranks

    @property
    def keeps_all(self) -> bool:
        """Whether the budget is everything, so that the model runs untouched."""
        return isinstance(self.keep, float) and self.keep == 1.0 and self.top_p is None

    def layer_for(self, layers: int, layouts: list[SampleLayout]) -> int:
        """The decoder layer before which this prompt's tokens are dropped; most methods do not look at the prompt."""
        return self.layer_index(layers)

    def layer_index(self, layers: int) -> int:
        """The decoder layer before which tokens are dropped, 0..L-1.

        Raises:
            VlmpruneError: the layer does not exist.
        """
        index = int(self.layer * layers) if isinstance(self.layer, float) else self.layer
        if index >= layers:
            raise VlmpruneError(
                f"layer={self.layer!r} is beyond the model's {layers} decoder layers; use 0 to {layers - 1} or a float "
                "below 1."
            )
        if index == 0 and (self.reads_attention or self.reads_keys) and not self.reads_own_layer:
            raise VlmpruneError(
                f"{type(self).__name__} reads the attention of the layer before, so layer={self.layer!r} leaves it "
                f"none in a model of {layers} decoder layers; use layer=1 or more."
            )
        return index

    def stage_layers(self, layers: int, layouts: list[SampleLayout] | None = None) -> tuple[int, ...]:
        """The layers before which tokens are dropped, ascending: one, unless a method drops in several stages.

        Args:
            layouts: of the prompt, None when a model is wrapped and there is none yet.
        """
        return (self.layer_index(layers) if layouts is None else self.layer_for(layers, layouts),)

    def query_positions(self, prompt: PruningContext) -> list[Tensor] | None:
        """Per sample, positions 0..S-1 of the text tokens whose attention counts; None = the last prompt token.

        Called once per prompt, before layer 0.
        """
        return None

    def score(self, prompt: PruningContext) -> list[Tensor]:
        """One number a visual token, higher is kept: per sample [V]."""
        raise NotImplementedError(f"{type(self).__name__} needs score() or select()")

    def select(self, prompt: PruningContext) -> Selection:
        """Which visual tokens stay; the best-scored of every image by default."""
        scores, parts = checked_scores(self.score(prompt), prompt.layouts, type(self).__name__), self._parts(prompt)
        samples = zip(scores, parts.layouts, self._counts(parts, scores), strict=True)
        return Selection([top_k_per_image(own, layout.images, counts) for own, layout, counts in samples])

    def _parts(self, prompt: PruningContext) -> PruningContext:
        """The prompt with a span for each part that has a budget of its own: an image, a video or a frame."""
        return prompt if self.frames == "shared" else replace(prompt, layouts=[by_frame(one) for one in prompt.layouts])

    def kept_of(self, span: ImageSpan) -> int | None:
        """How many tokens of an image or a video stay, where its grid alone says it; None where what it shows
        decides."""
        if self.top_p is not None:
            return None
        parts = [span] if self.frames == "shared" else frames_of(span)
        return sum(counts_for(self.keep, parts))

    def _counts(self, prompt: PruningContext, scores: Sequence[Tensor] = ()) -> list[list[int]]:
        """How many tokens of each span of each sample stay; with `top_p` by their scores, per sample [V]."""
        if self.top_p is None:
            weights = [self._weights(prompt, sample) for sample in range(len(prompt.layouts))]
            samples = zip(prompt.layouts, weights, strict=True)
            return [counts_for(self.keep, layout.images, own) for layout, own in samples]
        return [
            top_p_counts(own, layout.images, self.top_p, self.floor, self.keep)
            for own, layout in zip(scores, prompt.layouts, strict=True)
        ]

    def _weights(self, prompt: PruningContext, sample: int) -> list[float]:
        """With `frames="text"` each span's part of the budget of its video, else nothing."""
        spans = prompt.layouts[sample].images
        if self.frames != "text" or all(span.frame is None for span in spans):
            return []
        hidden = prompt.sample_hidden(sample).detach()
        words = prompt.hidden[sample, prompt.question(sample).to(hidden.device)].detach()
        weights: list[float] = []
        for _, group in itertools.groupby(spans, key=lambda span: span.image):
            weights += text_weights([hidden[span.positions.to(hidden.device)] for span in group], words)
        return weights
