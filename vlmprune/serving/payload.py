"""How an image's kept tokens travel to an engine, and the checks at both ends.

Bad embeddings can end an engine's process, and numbers that nobody bounds fill its memory, so nothing leaves or enters
without these checks. Each looks at sizes before it touches numbers.

Shapes: K kept tokens of an image, V all of them, R width of a row (`tower`).
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import pickletools
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import VlmpruneError

# The fields of an image's entry. A bare tensor is what stock vLLM takes; the plugin takes these by name.
ROWS, KEPT, VISUAL, GRID = "image_embeds", "kept", "visual", "image_grid_thw"
WHOLE = (torch.int32, torch.int64)
FLOATING = (torch.float32, torch.float16, torch.bfloat16)

# What torch.save writes of one plain tensor. Everything else that its reader knows makes something of a few bytes that
# is larger than they are (bytearray, sparse and meta tensors), or no plain tensor (nested, quantised, Parameter).
_GLOBALS = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"} | {
    f"torch {kind}Storage" for kind in ("Float", "Half", "BFloat16", "Int", "Long")
}
_OPCODES = {
    "PROTO", "GLOBAL", "MARK", "REDUCE", "STOP", "BINPERSID", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE",
    "BINPUT", "BINGET", "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "NEWTRUE", "NEWFALSE",
}  # fmt: skip
_LONGEST_PICKLE = 10_000  # bytes; that of a plain tensor has about 200
_MOST_FILES = 64  # in its archive; that of a plain tensor has 6 to 10
_SEND = "send base64 of torch.save(tensor)"


class BadEmbeddings(VlmpruneError):
    """What stands for an image cannot be handed to an engine."""


@dataclass(frozen=True)
class Bounds:
    """How large what stands for an image can be.

    `width`: R. `visual`: V of the family's largest image. `prompt`: the tokens that a prompt may have before pruning,
    which its images share. `merge`: patches of the grid that a token has on a side, None for families without grids,
    whose images all have V tokens.
    """

    width: int
    visual: int
    prompt: int
    merge: int | None = None


def _is_plain(value: Any, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Whether it is a tensor of one of these types and nothing but its numbers."""
    return (
        type(value) is Tensor
        and value.layout == torch.strided
        and value.dtype in dtypes
        and not (value.is_meta or value.is_quantized or value.is_nested or value.requires_grad or value.is_neg())
    )


def check_rows(rows: Any, width: int, most: int | None = None) -> Tensor:
    """Embeddings of one image, [K, R].

    Args:
        most: the largest K.
    Raises:
        BadEmbeddings: not a tensor of floating-point numbers, another shape, or a number that is not finite.
    """
    if not _is_plain(rows, FLOATING):
        raise BadEmbeddings(
            "The image embeddings are not a plain tensor of floating-point numbers (float32, float16 or bfloat16); "
            "send what Encoder returns."
        )
    if rows.dim() != 2 or not len(rows) or rows.shape[1] != width:
        raise BadEmbeddings(
            f"The image embeddings have the shape {_shape(rows)}; send one row of {width} numbers for every token."
        )
    if most is not None and len(rows) > most:
        raise BadEmbeddings(f"The image has {len(rows)} rows, and this model's largest image has {most} tokens.")
    if not bool(torch.isfinite(rows).all()):
        raise BadEmbeddings(
            "The image embeddings hold NaN or infinity; check the precision of the vision tower (float16 overflows in "
            "some models)."
        )
    return rows


def check_kept(kept: Any, rows: int, visual: int) -> Tensor:
    """Which of an image's V tokens its rows are: [K], ascending in 0..V-1.

    Raises:
        BadEmbeddings: anything else.
    """
    if not _is_plain(kept, WHOLE) or kept.dim() != 1 or len(kept) != rows or visual < rows:
        raise BadEmbeddings(
            f"The kept indices do not fit: {rows} rows of {visual} tokens need {rows} whole numbers below {visual}."
        )
    # The range first: differences of numbers outside of it can overflow and come out positive.
    inside = not bool(((kept < 0) | (kept >= visual)).any())
    if not inside or bool((torch.diff(kept) < 1).any()):
        raise BadEmbeddings(f"The kept indices are not ascending within 0..{visual - 1}; send what Encoder returns.")
    return kept


def check_grid(grid: Any, visual: int, merge: int) -> Tensor:
    """The patches (t, h, w) of an image of V tokens.

    Raises:
        BadEmbeddings: not three whole numbers, or those of an image with another number of tokens.
    """
    if not _is_plain(grid, WHOLE) or tuple(grid.shape) != (3,):
        raise BadEmbeddings(f"{GRID} is not a tensor of three whole numbers (t, h, w); send what Encoder returns.")
    t, h, w = grid.tolist()  # Python's numbers, whose product does not overflow
    if t != 1 or min(h, w) < merge or h % merge or w % merge or h * w != visual * merge**2:
        raise BadEmbeddings(f"{GRID}=({t}, {h}, {w}) is not the grid of an image with {visual} visual tokens.")
    return grid


def check_names(names: Iterable[Any], bounds: Bounds, whole: bool = False) -> None:
    """The names of an image's fields; `whole` as in `check_image`.

    Raises:
        BadEmbeddings: one is missing or unknown.
    """
    given = set(names)
    places = set() if whole and given <= {ROWS, GRID} else {KEPT, VISUAL}
    needed = {ROWS} | places | ({GRID} if bounds.merge is not None else set())
    if given != needed:
        raise BadEmbeddings(
            f"An image's embeddings have the fields {sorted(map(str, given))!s:.80}; send {', '.join(sorted(needed))}."
        )


def check_image(fields: Mapping[str, Any], bounds: Bounds, whole: bool = False) -> int:
    """One image's fields, each by itself and with the others; returns V.

    Args:
        whole: the rows may come without their places: they are all rows of the image.
    Raises:
        BadEmbeddings: a field is missing or unknown, or does not fit.
    """
    check_names(fields, bounds, whole)
    if VISUAL in fields:
        number = fields[VISUAL]
        if not _is_plain(number, WHOLE) or number.dim() > 1 or number.numel() != 1:
            raise BadEmbeddings("The number of visual tokens is not a tensor of one int; send what Encoder returns.")
        visual = int(number)
        least = 1 if bounds.merge is not None else bounds.visual
        if not least <= visual <= bounds.visual:
            raise BadEmbeddings(
                f"The image has {visual} visual tokens; images of this model have {least} to {bounds.visual}."
            )
        check_kept(fields[KEPT], len(check_rows(fields[ROWS], bounds.width, visual)), visual)
    else:
        visual = len(check_rows(fields[ROWS], bounds.width, bounds.visual))
    if bounds.merge is not None:
        check_grid(fields[GRID], visual, bounds.merge)
    return visual


def check_images(images: Iterable[Mapping[str, Any]], bounds: Bounds, whole: bool = False) -> None:
    """The fields of all images of a prompt.

    Raises:
        BadEmbeddings: as `check_image`, or together they reach further than the model's positions.
    """
    total = sum(check_image(fields, bounds, whole) for fields in images)
    if total > bounds.prompt:
        raise BadEmbeddings(
            f"The images have {total} visual tokens together, and the model's positions end at {bounds.prompt}; send "
            "fewer images."
        )


def encoded(tensor: Tensor) -> str:
    """A tensor as text, the way vLLM's server reads it."""
    buffer = io.BytesIO()
    torch.save(tensor.detach().cpu().contiguous().clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def decoded(text: Any) -> Tensor:
    """The tensor in such a text; nothing in it is executed, and no more memory is taken than the text has.

    Raises:
        BadEmbeddings: there is none.
    """
    if not isinstance(text, str):
        raise BadEmbeddings(f"The image embeddings are not text; {_SEND}.")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadEmbeddings(f"The image embeddings are not base64 text; {_SEND}.") from None
    try:
        clean, size = _repacked(content)
        value = torch.load(clean, weights_only=True, map_location="cpu")
    except BadEmbeddings:
        raise
    except Exception as error:  # UnpicklingError and whatever else a forged archive brings about
        raise BadEmbeddings(f"The image embeddings cannot be read ({type(error).__name__}); {_SEND}.") from None
    if type(value) is not Tensor:
        raise BadEmbeddings(f"The image embeddings are not a tensor; {_SEND}.")
    # A stride of 0 shows one number as often as one likes, and torch believes the pickle about the storage's length.
    if math.prod(value.shape) * value.element_size() > size or value.untyped_storage().nbytes() != size:
        raise BadEmbeddings(
            f"The image embeddings have the shape {_shape(value)}, and their file holds {size:,} bytes; {_SEND}."
        )
    return value


def _repacked(content: bytes) -> tuple[io.BytesIO, int]:
    """The archive of one plain tensor, written again, and the bytes of its numbers. Written again, because torch reads
    archives in another way than this check, and what was checked has to be what is read."""
    clean, size = io.BytesIO(), None
    if content.count(b"PK\x01\x02") > _MOST_FILES:  # before the directory is read, an object an entry
        raise BadEmbeddings(f"The image embeddings have more files than the archive of a tensor; {_SEND}.")
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(clean, "w") as again:
        entries = archive.infolist()
        # torch.save does not compress; an archive that does is meant to fill the memory.
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > len(content):
            raise BadEmbeddings(f"The image embeddings are compressed, or larger than their file; {_SEND}.")
        for entry in entries:
            if entry.filename.endswith("/data.pkl"):
                _check_pickle(archive.read(entry) if entry.file_size <= _LONGEST_PICKLE else b"")
            elif "/data/" in entry.filename:
                if size is not None:
                    raise BadEmbeddings(f"The image embeddings are more than one tensor; {_SEND}.")
                size = entry.file_size
            again.writestr(entry.filename, archive.read(entry))
    if size is None:
        raise BadEmbeddings(f"The image embeddings hold no numbers; {_SEND}.")
    clean.seek(0)
    return clean, size


def _check_pickle(pickled: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name not in _OPCODES or (opcode.name == "GLOBAL" and argument not in _GLOBALS):
            what = str(argument if opcode.name == "GLOBAL" else opcode.name).replace(" ", ".")
            raise BadEmbeddings(
                f"The image embeddings hold {what!r:.60}, which is not part of a plain tensor of float32, float16, "
                f"bfloat16, int32 or int64; {_SEND}."
            )


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape[:6]))}{', ...' if tensor.dim() > 6 else ''})"


def part(fields: dict[str, Tensor] | Tensor) -> dict[str, Any]:
    """The content part of one image: its rows alone, or with the fields that the plugin reads."""
    if isinstance(fields, Tensor):
        return {"type": "image_embeds", "image_embeds": encoded(fields)}
    return {"type": "image_embeds", "image_embeds": {name: encoded(value) for name, value in fields.items()}}


def checked_parts(
    contents: Iterable[Any], bounds: Bounds, positions: str, count: int | None = None
) -> list[dict[str, Any]]:
    """The parts of images that a client encoded itself (`Encoder.chat_part` on its own machine), written again from
    what was read of them.

    Args:
        contents: what the parts hold, of all images of a prompt. count: how many rows each must have, None for any
            number.
    Raises:
        BadEmbeddings: one does not hold what an engine with these positions takes.
    """
    compact = positions == "compact"
    images = []
    for content in contents:
        if isinstance(content, dict) == compact:
            wanted = "a base64 text" if compact else f"an object with {ROWS!r}, {KEPT!r} and {VISUAL!r}"
            raise BadEmbeddings(f"This server keeps {positions} positions, so image_embeds must be {wanted}.")
        given = {ROWS: content} if compact else content
        check_names(given, bounds, compact)  # before any of them is read
        images.append({name: decoded(text) for name, text in given.items()})
    check_images(images, bounds, compact)
    for rows in [len(fields[ROWS]) for fields in images]:
        if rows != (count or rows):
            raise BadEmbeddings(f"The image has {rows} rows, and this server's engine takes {count} of every image.")
    return [part(fields[ROWS] if compact else fields) for fields in images]
