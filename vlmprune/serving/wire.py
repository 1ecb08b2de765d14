"""How an image's kept tokens travel to an engine, and the checks at both ends.

Bad embeddings can end an engine's process, so nothing leaves or enters without `check_rows`.

Shapes: K kept tokens of an image, V all of them, R width of a row (`tower`).
"""

from __future__ import annotations

import base64
import binascii
import io
import zipfile
from typing import Any

import torch
from torch import Tensor

from ..errors import VlmpruneError

# The fields of an image's entry. A bare tensor is what stock vLLM takes; the plugin takes these by name.
ROWS, KEPT, VISUAL, GRID = "image_embeds", "kept", "visual", "image_grid_thw"


class BadEmbeddings(VlmpruneError):
    """What stands for an image cannot be handed to an engine."""


def check_rows(rows: Any, width: int) -> Tensor:
    """Embeddings of one image, [K, R].

    Raises:
        BadEmbeddings: no tensor of floating-point numbers, another shape, or a number that is not finite.
    """
    if not isinstance(rows, Tensor) or not rows.is_floating_point() or rows.layout != torch.strided:
        raise BadEmbeddings("The image embeddings are no tensor of floating-point numbers; send what Encoder returns.")
    if rows.dim() != 2 or not len(rows) or rows.shape[1] != width:
        raise BadEmbeddings(
            f"The image embeddings have the shape {tuple(rows.shape)}; send one row of {width} numbers for every token."
        )
    if not bool(torch.isfinite(rows).all()):
        raise BadEmbeddings(
            "The image embeddings hold NaN or infinity; check the precision of the vision tower (float16 overflows in "
            "some models)."
        )
    return rows


def check_kept(kept: Any, rows: int, visual: Any) -> Tensor:
    """Which of an image's V tokens its rows are: [K], ascending in 0..V-1.

    Raises:
        BadEmbeddings: anything else.
    """
    whole = isinstance(kept, Tensor) and kept.dtype in (torch.int32, torch.int64) and kept.dim() == 1
    total = int(visual) if isinstance(visual, int) or (isinstance(visual, Tensor) and visual.numel() == 1) else 0
    if not whole or len(kept) != rows or total < rows:
        raise BadEmbeddings(
            f"The kept indices do not fit: {rows} rows of {total} tokens need {rows} whole numbers below {total}."
        )
    if rows and (int(kept[0]) < 0 or int(kept[-1]) >= total or bool((torch.diff(kept) < 1).any())):
        raise BadEmbeddings(f"The kept indices are not ascending within 0..{total - 1}; send what Encoder returns.")
    return kept


def encoded(tensor: Tensor) -> str:
    """A tensor as text, the way vLLM's server reads it."""
    buffer = io.BytesIO()
    torch.save(tensor.detach().cpu().contiguous().clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def decoded(text: Any) -> Tensor:
    """The tensor in such a text; nothing in it is executed.

    Raises:
        BadEmbeddings: there is none.
    """
    try:
        content = base64.b64decode(text, validate=True)
        # torch.save does not compress; an archive that does, or a tensor larger than it, is meant to fill the memory.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("compressed")
        value = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        if isinstance(value, Tensor) and value.numel() * value.element_size() > len(content):
            raise ValueError("larger than its file")
    except (
        zipfile.BadZipFile,
        binascii.Error,
        TypeError,
        ValueError,
        RuntimeError,
        EOFError,
        KeyError,
        AttributeError,
        OSError,
    ):
        value = None
    except Exception as error:  # UnpicklingError and whatever else a forged archive brings about
        raise BadEmbeddings(
            f"The image embeddings cannot be read ({type(error).__name__}); send base64 of torch.save(tensor)."
        ) from None
    if not isinstance(value, Tensor):
        raise BadEmbeddings("The image embeddings cannot be read; send base64 of torch.save(tensor).")
    return value


def part(fields: dict[str, Tensor] | Tensor) -> dict[str, Any]:
    """The content part of one image: its rows alone, or with the fields that the plugin reads."""
    if isinstance(fields, Tensor):
        return {"type": "image_embeds", "image_embeds": encoded(fields)}
    return {"type": "image_embeds", "image_embeds": {name: encoded(value) for name, value in fields.items()}}


def check_part(content: dict[str, Any], width: int, positions: str, count: int | None = None) -> None:
    """A part that a client made itself (`Encoder.chat_part` on its own machine).

    Args:
        count: how many rows it must have, None for any number.
    Raises:
        BadEmbeddings: it does not hold what an engine with these positions takes.
    """
    value = content.get("image_embeds")
    wanted = "a base64 text" if positions == "compact" else f"an object with {ROWS!r}, {KEPT!r} and {VISUAL!r}"
    if isinstance(value, dict) != (positions == "original"):
        raise BadEmbeddings(f"This server keeps {positions} positions, so image_embeds must be {wanted}.")
    if not isinstance(value, dict):
        rows = check_rows(decoded(value), width)
        if count is not None and len(rows) != count:
            raise BadEmbeddings(
                f"The image has {len(rows)} rows, and this server's engine takes {count} of every image."
            )
        return
    if not {ROWS, KEPT, VISUAL} <= value.keys() <= {ROWS, KEPT, VISUAL, GRID}:
        raise BadEmbeddings(f"image_embeds has the fields {sorted(value)}; it must be {wanted}.")
    fields = {name: decoded(text) for name, text in value.items()}
    rows = check_rows(fields[ROWS], width)
    check_kept(fields[KEPT], len(rows), fields[VISUAL])
