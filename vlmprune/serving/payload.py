"""How an image's kept tokens travel to an engine, and the checks at both ends.

Bad embeddings can end an engine's process, and numbers that nobody bounds fill its memory, so nothing leaves or enters
without these checks. Each looks at sizes before it touches numbers.

Shapes: K kept tokens of an image, V all of them, R width of a row (`tower`).
"""

import base64
import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
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

_LONGEST_PICKLE = 10_000  # bytes; that of a plain tensor has about 200
_MOST_FILES = 64  # in its archive; that of a plain tensor has 6 to 10


class BadEmbeddings(VlmpruneError):
    """What stands for an image cannot be handed to an engine."""


@dataclass(frozen=True)
class Bounds:
    """How large what stands for an image can be.

    `width`: R. `visual`: V of the family's largest image. `prompt`: the tokens that a prompt may have before pruning,
    which its images share. `merge`: patches of the grid that a token has on a side, None for families without grids,
    whose images all have V tokens. `rows`: the K that every image must have, None for any.
    """

    width: int
    visual: int
    prompt: int
    merge: int | None = None
    rows: int | None = None


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
            f"The image embeddings have the shape {tuple(rows.shape)!s:.80}; send one row of {width} numbers for "
            "every token."
        )
    if most is not None and len(rows) > most:
        raise BadEmbeddings(f"The image has {len(rows)} rows, and this model's largest image has {most} tokens.")
    if not bool(torch.isfinite(rows).all()):
        raise BadEmbeddings(
            "The image embeddings hold NaN or infinity; check the precision of the vision tower (float16 overflows in "
            "some models)."
        )
    return rows


def check_image(fields: Mapping[str, Any], bounds: Bounds, whole: bool = False) -> int:
    """One image's fields, each by itself and with the others; returns V.

    Args:
        whole: the rows may come without their places: they are all rows of the image.
    Raises:
        BadEmbeddings: a field is missing or unknown, or does not fit.
    """
    given = set(fields)
    needed = {ROWS} if whole and given <= {ROWS, GRID} else {ROWS, KEPT, VISUAL}
    needed |= {GRID} if bounds.merge is not None else set()
    if given != needed:
        raise BadEmbeddings(
            f"An image's embeddings have the fields {sorted(map(str, given))!s:.80}; send {', '.join(sorted(needed))}."
        )
    rows = visual = len(check_rows(fields[ROWS], bounds.width, bounds.visual))
    if bounds.rows not in (None, rows):
        raise BadEmbeddings(f"The image has {rows} rows, and this server's engine takes {bounds.rows} of every image.")
    if VISUAL in fields:
        number, kept = fields[VISUAL], fields[KEPT]
        if not _is_plain(number, WHOLE) or number.dim() > 1 or number.numel() != 1:
            raise BadEmbeddings("The number of visual tokens is not a tensor of one int; send what Encoder returns.")
        visual = int(number)
        least = 1 if bounds.merge is not None else bounds.visual
        if not least <= visual <= bounds.visual:
            raise BadEmbeddings(
                f"The image has {visual} visual tokens; images of this model have {least} to {bounds.visual}."
            )
        if not _is_plain(kept, WHOLE) or kept.dim() != 1 or len(kept) != rows or visual < rows:
            raise BadEmbeddings(
                f"The kept indices do not fit: {rows} rows of {visual} tokens need {rows} whole numbers below {visual}."
            )
        # Compared and not subtracted: differences of numbers far outside of the range overflow.
        if int(kept[0]) < 0 or int(kept[-1]) >= visual or bool((kept[1:] <= kept[:-1]).any()):
            raise BadEmbeddings(
                f"The kept indices are not ascending within 0..{visual - 1}; send what Encoder returns."
            )
    if bounds.merge is not None:
        grid, merge = fields[GRID], bounds.merge
        if not _is_plain(grid, WHOLE) or tuple(grid.shape) != (3,):
            raise BadEmbeddings(f"{GRID} is not a tensor of three whole numbers (t, h, w); send what Encoder returns.")
        t, h, w = grid.tolist()  # Python's numbers, whose product does not overflow
        if t != 1 or min(h, w) < merge or h % merge or w % merge or h * w != visual * merge**2:
            raise BadEmbeddings(f"{GRID}=({t}, {h}, {w}) is not the grid of an image with {visual} visual tokens.")
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
    try:
        value = _unpickled(base64.b64decode(text, validate=True))
    except BadEmbeddings:
        raise
    except Exception as error:  # UnpicklingError and whatever else a forged archive brings about
        raise _unlike(f"cannot be read ({type(error).__name__})") from None
    if type(value) is not Tensor:
        raise _unlike("are not a tensor")
    return value


def _unlike(what: str) -> BadEmbeddings:
    return BadEmbeddings(f"The image embeddings {what}; send base64 of torch.save(tensor).")


def _unpickled(content: bytes) -> Any:
    """What the archive of one plain tensor holds. Torch's reader takes archives in another way than zipfile, and makes
    sparse, meta, nested and quantised tensors and Parameters too, some of them large ones of a few bytes."""
    if content.count(b"PK\x01\x02") > _MOST_FILES:  # before the directory is read, an object an entry
        raise _unlike("have more files than the archive of a tensor")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        # torch.save does not compress; an archive that does is meant to fill the memory.
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > len(content):
            raise _unlike("are compressed, or larger than their file")
        files = {entry.filename.partition("/")[2]: archive.read(entry) for entry in entries}
    pickled = files["data.pkl"][:_LONGEST_PICKLE]
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name not in _OPCODES or (opcode.name == "GLOBAL" and argument not in _GLOBALS):
            what = str(argument if opcode.name == "GLOBAL" else opcode.name).replace(" ", ".")
            raise _unlike(
                f"hold {what!r:.60}, which is not part of a plain tensor of float32, float16, bfloat16, int32 or int64"
            )
    numbers = [data for name, data in files.items() if name.startswith("data/")]
    if len(numbers) != 1 or files.get("byteorder", b"little") != b"little":
        raise _unlike("are not the numbers of one tensor, the lowest byte first")
    return _Unpickler(pickled, bytearray(numbers[0])).load()


class _Unpickler(pickle.Unpickler):
    """Reads a pickle that consists of `_OPCODES` and `_GLOBALS`."""

    def __init__(self, pickled: bytes, numbers: bytearray) -> None:
        super().__init__(io.BytesIO(pickled))
        self._numbers = numbers

    def find_class(self, module: str, name: str) -> Any:
        return _GLOBALS[f"{module} {name}"]

    def persistent_load(self, key: Any) -> Tensor:
        """The storage of a tensor: all numbers of the file."""
        _, dtype, _, _, count = key
        if count * dtype.itemsize != len(self._numbers):
            raise _unlike(f"have {count} numbers, and their file holds {len(self._numbers):,} bytes")
        return torch.frombuffer(self._numbers, dtype=dtype)


def _rebuilt(numbers: Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view of a storage. A stride of 0 shows one number as often as one likes."""
    if math.prod(shape) > len(numbers):
        raise _unlike(f"have the shape {shape!s:.80}, and their file holds {numbers.nbytes:,} bytes")
    return numbers.as_strided(shape, stride, offset)


# What torch.save writes of one plain tensor.
_GLOBALS = {
    "torch._utils _rebuild_tensor_v2": _rebuilt,
    "collections OrderedDict": OrderedDict,  # of hooks, empty
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch IntStorage": torch.int32,
    "torch LongStorage": torch.int64,
}
_OPCODES = {
    "PROTO", "GLOBAL", "MARK", "REDUCE", "STOP", "BINPERSID", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE",
    "BINPUT", "BINGET", "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "NEWFALSE",
}  # fmt: skip


def part(fields: Mapping[str, Tensor]) -> dict[str, Any]:
    """The content part of one image: its fields by name, or its rows alone where there are no others."""
    texts: Any = {name: encoded(value) for name, value in fields.items()}
    return {"type": ROWS, ROWS: texts if len(texts) > 1 else texts[ROWS]}


def checked_parts(contents: Iterable[Any], bounds: Bounds, positions: str) -> list[dict[str, Any]]:
    """The parts of images that a client encoded itself (`Encoder.chat_part` on its own machine), written again from
    what was read of them.

    Args:
        contents: what the parts hold, of all images of a prompt.
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
        images.append({name: decoded(text) for name, text in given.items()})
    check_images(images, bounds, compact)
    return [part(fields) for fields in images]
