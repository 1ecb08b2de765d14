"""What a user's method returned, checked and brought into one form; everything wrong with it is said in one sentence.

Shapes: B samples, V visual tokens of a sample, K kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import VlmpruneError
from .locate import SampleLayout
from .select import UNRANKED, Selection


def checked_scores(scores: Any, layouts: Sequence[SampleLayout], who: str) -> list[Tensor]:
    """Scores [V] of every sample; lists of numbers are taken too.

    Raises:
        VlmpruneError: not one number a visual token, or one that is NaN.
    """
    wanted = "return one 1-D tensor a sample, with one number for each of its visual tokens"
    out = []
    for sample, (value, layout) in enumerate(_each(scores, layouts, f"{who}.score()", wanted)):
        found = _tensor(value)
        if found is None or found.shape != (layout.count,) or found.is_complex():
            raise VlmpruneError(
                f"{who}.score() returned {shown(value)} for sample {sample}, which has {layout.count} visual tokens; "
                f"{wanted}."
            )
        if found.device.type == "cpu" and bool(torch.isnan(found).any()):
            raise VlmpruneError(
                f"{who}.score() returned NaN for sample {sample}, so no ranking exists; check the model's "
                "precision (float16 overflows in some models) or the function."
            )
        out.append(found)
    return out


def checked_selection(selection: Any, layouts: Sequence[SampleLayout], width: int, who: str) -> Selection:
    """A selection whose `kept` are int64 indices on the CPU; bool masks [V] and lists of whole numbers are taken too.

    Args:
        width: of the hidden states, which merged ones take the place of.
    Raises:
        VlmpruneError: no indices, or none, too many, unordered or impossible ones.
    """
    wanted = "return Selection(kept), with the ascending indices of the visual tokens that stay, 1-D, for each sample"
    kept = selection.kept if isinstance(selection, Selection) else selection
    out = [
        _indices(value, layout.count, f"{who}.select()", sample, wanted)
        for sample, (value, layout) in enumerate(_each(kept, layouts, f"{who}.select()", wanted))
    ]
    merged = selection.merged if isinstance(selection, Selection) else None
    if merged is None:
        return Selection(out)
    wanted = f"return one 2-D tensor a sample, with one row of hidden states ({width} wide) for each token that stays"
    for sample, (value, layout) in enumerate(_each(merged, layouts, f"{who}.select() as merged", wanted)):
        if not isinstance(value, Tensor) or value.shape != (len(out[sample]), width):
            raise VlmpruneError(
                f"{who}.select() returned merged states of {shown(value)} for sample {sample}, of which "
                f"{len(out[sample])} of {layout.count} visual tokens stay; {wanted}."
            )
    return Selection(out, list(merged))


def _each(values: Any, layouts: Sequence[SampleLayout], what: str, wanted: str) -> list[tuple[Any, SampleLayout]]:
    """One value a sample, with the sample's layout."""
    if not isinstance(values, list | tuple | Tensor) or (isinstance(values, Tensor) and values.dim() == 0):
        raise VlmpruneError(f"{what} returned {shown(values)}; {wanted}.")
    if len(values) != len(layouts):
        raise VlmpruneError(f"{what} returned {len(values)} entries for a batch of {len(layouts)}; {wanted}.")
    return list(zip(values, layouts, strict=True))


def _indices(value: Any, visual: int, what: str, sample: int, wanted: str) -> Tensor:
    found = _tensor(value)
    where = f"for sample {sample}, which has {visual} visual tokens"
    if found is not None and found.numel() == 0 and found.dim() == 1:
        found = found.long()
    if found is None or found.dim() != 1 or found.is_floating_point() or found.is_complex():
        raise VlmpruneError(f"{what} returned {shown(value)} {where}; {wanted}.")
    found = found.cpu()
    if found.dtype == torch.bool:
        if len(found) != visual:
            raise VlmpruneError(f"{what} returned a bool mask of {len(found)} {where}; {wanted}.")
        found = found.nonzero()[:, 0]
    found = found.long()
    if bool((found == UNRANKED).any()):
        raise VlmpruneError(
            f"The scores that {what} ranked hold NaN for sample {sample}, so no ranking exists; check the model's "
            "precision (float16 overflows in some models) or the function."
        )
    steps = torch.diff(found, prepend=torch.tensor([-1]), append=torch.tensor([visual]))
    if visual and (len(found) == 0 or bool((steps < 1).any())):
        raise VlmpruneError(
            f"{what} kept {found.tolist()!s:.60} {where}; keep at least one, as ascending indices below that number, "
            "none twice."
        )
    if not visual and len(found):
        raise VlmpruneError(f"{what} kept {found.tolist()!s:.60} {where}; keep none there.")
    return found


def _tensor(value: Any) -> Tensor | None:
    """A tensor, or a list of numbers as one; None for anything else."""
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(value) if isinstance(value, list | tuple) or hasattr(value, "__array__") else None
    except (TypeError, ValueError, RuntimeError):
        return None


def shown(value: Any) -> str:
    """A value as messages name it: a tensor by dtype and shape."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return f"{value!r:.60}"
