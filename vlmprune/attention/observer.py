"""What reads or edits attention during a model's forwards: the interface between the session and its readers.

Shapes: B batch, S sequence, H heads, D head width.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..errors import VlmpruneError
from ..flow.compact import Compaction
from ..flow.prompt_state import PromptState
from .probe import AttentionCall


class AttentionObserver:
    """Sees the attention calls of chosen decoder layers, beside whatever pruner the model has.

    A session calls `begin` as the forward of a prompt begins, `prompt` when its visual tokens were located and its
    decoder layers are next, `begin_decode` when a step (or a later turn) on a filled cache begins, `before_layer`
    before every decoder layer, and `attention` after every attention call of the chosen layers in either, unless `step`
    has answered it. `notes` goes into the prompt's report.
    """

    def layers(self, seeing: Sequence[int]) -> Sequence[int]:
        """Which decoder layers to watch, of those whose attention sees visual tokens (by default all of these)."""
        return seeing

    def begin(self, ids: Tensor | None, valid: Tensor | None) -> None:
        """The forward of a prompt begins; `ids` [B, S] and their padding mask, if it came as ids.

        Here, and only here, the language model may be run on something else: no hook watches it yet.
        """

    def prompt(self, state: PromptState) -> None:
        """A prompt begins; `state.layouts` says where its visual tokens are."""

    def begin_decode(self, ids: Tensor | None, cache: Any) -> None:
        """A step on a filled cache begins; `ids` [B, S] are its new tokens."""

    def before_layer(self, layer: int, hidden: Tensor) -> None:
        """The residual stream [B, S, width] entering a decoder layer, after compaction if this layer compacts."""

    def attention(self, layer: int, call: AttentionCall, output: Tensor) -> Tensor | None:
        """An attention call of a chosen layer and its output [B, S, H, D]; return what takes its place, or None."""
        return None

    def step(self, layer: int, call: AttentionCall, kernel: Callable[[], Tensor]) -> Tensor | None:
        """An attention call of a single row whose fused kernel has not run yet: its output, or None to let it run."""
        return None

    def cut(self, layer: int, chosen: Compaction, group: int) -> None:
        """The prompt has run, and of the entries that a layer's cache holds of it only those at `chosen.index` [B, C]
        are left, or [B, G, C] of each key head, which is that of `group` query heads."""

    def notes(self) -> list[str]:
        """What a reader of the report of the prompt that just ended should know."""
        return []


def check_observer(observer: Any, seeing: Sequence[int]) -> None:
    """Refuse what an intervention's `observer()` returned if it is none, or one of layers that do not see the image."""
    if not isinstance(observer, AttentionObserver):
        raise VlmpruneError(f"An intervention's observer() returned {observer!r:.60}; return an AttentionObserver.")
    layers = observer.layers(seeing)
    if not isinstance(layers, Sequence) or any(type(i) is not int or i not in seeing for i in layers):
        raise VlmpruneError(
            f"{type(observer).__name__}.layers() returned {layers!r:.60}; choose from the layers that see the image, "
            f"{', '.join(map(str, seeing))}."
        )


def edited(observer: AttentionObserver, layer: int, call: AttentionCall, output: Tensor) -> Tensor | None:
    """What an observer makes of an attention call's output, None where it leaves it; refused where it does not fit."""
    made: Any = observer.attention(layer, call, output)
    if made is None:
        return None
    same = isinstance(made, Tensor) and (made.shape, made.dtype, made.device) == (
        output.shape, output.dtype, output.device
    )  # fmt: skip
    if not same:
        what = f"{made.dtype} {tuple(made.shape)} on {made.device}" if isinstance(made, Tensor) else f"{made!r:.60}"
        raise VlmpruneError(
            f"{type(observer).__name__}.attention() returned {what} in layer {layer}, in the place of {output.dtype} "
            f"{tuple(output.shape)} on {output.device}; return a tensor like that, or None."
        )
    return made
