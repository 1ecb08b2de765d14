"""What a user's method returned, checked and brought into one form; everything wrong with it is said in one sentence.

Shapes: B samples, V visual tokens of a sample, K kept.
"""

import itertools
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..errors import VlmpruneError
from .locate import SampleLayout
from .select import UNRANKED, Selection

_RANKED = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
_PRECISION = "check the model's precision (float16 overflows in some models) or the function."


def checked_scores(scores: Any, layouts: Sequence[SampleLayout], who: str) -> list[Tensor]:
    """Scores [V] of every sample, one number a visual token and none of them NaN; lists of numbers are taken too."""
    wanted = "return one 1-D tensor a sample, with one number for each of its visual tokens"
    what = f"{who}.score()"
    out: list[Tensor] = []
    for value, layout in _each(scores, layouts, what, wanted):
        found, where = _tensor(value), _sample(len(out), layout)
        if found is None or found.shape != (layout.count,) or found.is_complex():
            raise VlmpruneError(f"{what} returned {shown(value)} {where}; {wanted}.")
        if found.device.type == "cpu" and bool(torch.isnan(found).any()):
            raise VlmpruneError(f"{what} returned NaN for sample {len(out)}, so no ranking exists; {_PRECISION}")
        if found.dtype not in _RANKED:  # numbers without a sign, and floats of 8 bits, do not sort
            found = found.float() if found.is_floating_point() else found.long()
        out.append(found)
    return out


def checked_selection(selection: Any, layouts: Sequence[SampleLayout], width: int, who: str) -> Selection:
    """A selection whose `kept` are int64 indices on the CPU; bool masks [V] and lists of whole numbers are taken too.

    `width`: of the hidden states, which merged ones take the place of.
    """
    what = f"{who}.select()"
    out: list[Tensor] = []
    kept, merged = (selection.kept, selection.merged) if isinstance(selection, Selection) else (selection, None)
    wanted = "return Selection(kept), with the ascending indices of the visual tokens that stay, 1-D, for each sample"
    for value, layout in _each(kept, layouts, what, wanted):
        out.append(_indices(value, layout.count, what, _sample(len(out), layout), wanted))
    if merged is None:
        return Selection(out)
    wanted = (
        f"return one 2-D tensor of floats a sample, with one row of hidden states ({width} wide) for each token that "
        "stays"
    )
    for sample, (value, layout) in enumerate(_each(merged, layouts, f"{what} as merged", wanted)):
        found = value if isinstance(value, Tensor) and readable(value) and value.is_floating_point() else None
        if found is None or found.shape != (len(out[sample]), width):
            raise VlmpruneError(
                f"{what} returned merged states of {shown(value)} for sample {sample}, of which {len(out[sample])} of "
                f"{layout.count} visual tokens stay; {wanted}."
            )
        if found.device.type == "cpu" and not bool(torch.isfinite(found).all()):
            raise VlmpruneError(
                f"{what} returned merged states with NaN or infinite numbers for sample {sample}; {_PRECISION}"
            )
    return Selection(out, list(merged))


def checked_layers(layers: Any, depth: int, who: str) -> tuple[int, ...]:
    """The layers before which a pruner drops tokens, as Python's numbers: ascending, of the model's `depth`."""
    numbers = list(layers) if isinstance(layers, list | tuple) or hasattr(layers, "__len__") else []
    fine = [isinstance(one, Integral) and not isinstance(one, bool) and 0 <= int(one) < depth for one in numbers]
    if not all(fine) or not fine or any(a >= b for a, b in itertools.pairwise(numbers)):
        raise VlmpruneError(
            f"{who}.stage_layers() (or what it calls) returned {shown(layers)} for a model of {depth} decoder layers; "
            f"return a tuple of ascending whole numbers from 0 to {depth - 1}."
        )
    return tuple(int(one) for one in numbers)


def checked_query_positions(positions: Any, valid: Tensor, who: str) -> list[Tensor] | None:
    """Positions of the rows whose attention counts, int64 on the CPU, per sample; bool masks [S] and lists too.

    `valid` [B, S]: the padding mask, where they have to lie.
    """
    if positions is None:
        return None
    wanted = "return the positions of tokens, 1-D, for each sample (one at least, where prompt.valid is True), or None"
    what = f"{who}.query_positions()"
    out: list[Tensor] = []
    for value, real in _each(positions, valid, what, wanted):
        where = f"for sample {len(out)}"
        found = _whole_numbers(value, len(real), what, where, wanted)
        known = found[(found >= 0) & (found < len(real))]
        if not len(found) or len(known) < len(found) or not bool(real[known].all()):
            raise VlmpruneError(f"{what} returned {found.tolist()!s:.60} {where}; {wanted}.")
        out.append(found)
    return out


def _sample(number: int, layout: SampleLayout) -> str:
    return f"for sample {number}, which has {layout.count} visual tokens"


def _each(values: Any, samples: Sequence[Any] | Tensor, what: str, wanted: str) -> list[tuple[Any, Any]]:
    """One value a sample, beside what is known of the sample."""
    array = hasattr(values, "__array__")
    if not (array or isinstance(values, list | tuple)) or (array and not values.shape):
        raise VlmpruneError(f"{what} returned {shown(values)}; {wanted}.")
    if len(values) != len(samples):
        raise VlmpruneError(f"{what} returned {len(values)} entries for a batch of {len(samples)}; {wanted}.")
    return list(zip(values, samples, strict=True))


def _indices(value: Any, visual: int, what: str, where: str, wanted: str) -> Tensor:
    found = _whole_numbers(value, visual, what, where, wanted)
    if bool((found == UNRANKED).any()):
        raise VlmpruneError(f"The scores that {what} ranked hold NaN {where}, so no ranking exists; {_PRECISION}")
    steps = torch.diff(found, prepend=torch.tensor([-1]), append=torch.tensor([visual]))
    remedy = "keep at least one, as ascending indices below that number, none twice" if visual else "keep none there"
    if bool((steps < 1).any()) or (visual and not len(found)):
        raise VlmpruneError(f"{what} kept {found.tolist()!s:.60} {where}; {remedy}.")
    return found


def _whole_numbers(value: Any, size: int, what: str, where: str, wanted: str) -> Tensor:
    """Whole numbers, or a bool mask of `size` as the places where it is True: int64 on the CPU, 1-D."""
    found = _tensor(value)
    if found is not None and found.numel() == 0 and found.dim() == 1:
        found = found.long()
    if found is None or found.dim() != 1 or found.is_floating_point() or found.is_complex():
        raise VlmpruneError(f"{what} returned {shown(value)} {where}; {wanted}.")
    found = found.cpu()
    if found.dtype == torch.bool:
        if len(found) != size:
            raise VlmpruneError(f"{what} returned a bool mask of {len(found)} {where}; {wanted}.")
        found = found.nonzero()[:, 0]
    return found.long()


def readable(tensor: Tensor) -> bool:
    """Whether a tensor has numbers, one behind the other."""
    return tensor.layout == torch.strided


def _tensor(value: Any) -> Tensor | None:
    """A tensor, or a list of numbers as one; None for anything else."""
    if isinstance(value, Tensor):
        return value if readable(value) else None
    try:
        return torch.as_tensor(value) if isinstance(value, list | tuple) or hasattr(value, "__array__") else None
    except (TypeError, ValueError, RuntimeError):
        return None


def shown(value: Any) -> str:
    """A value in one line, as messages name it: tensors and arrays by dtype and shape."""
    if isinstance(value, Tensor):
        kind = "" if value.layout == torch.strided else f"{str(value.layout).removeprefix('torch.')} "
        return f"a {kind}{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if hasattr(value, "__array__") and getattr(value, "shape", None):
        return f"a {value.dtype} array of shape {tuple(value.shape)}"
    return " ".join(f"{value!r:.60}".split())
