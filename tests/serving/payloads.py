"""Embeddings that a stranger might send in place of an image's: none of them may be taken, none may harm anybody.

`mutated(good, ...)` draws them from a seed: the fields of an image with one of them changed, or forged on the way.
"""

from __future__ import annotations

import base64
import io
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmprune.serving.payload import decoded

HUGE = (2**31 - 1, 2**31, 2**40, 2**53 + 1, 2**62, 2**63 - 1)


def saved(value: Any) -> str:
    """Any object as torch.save writes it, which is not what an encoder writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return as_text(buffer.getvalue())


def as_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def archive(pickled: bytes, *records: bytes, compression: int = zipfile.ZIP_STORED) -> str:
    """A file of torch.save with any pickle and any numbers."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        made.writestr("archive/data.pkl", pickled)
        made.writestr("archive/byteorder", "little")
        for number, record in enumerate(records):
            made.writestr(f"archive/data/{number}", record)
        made.writestr("archive/version", "3\n")
    return as_text(buffer.getvalue())


def claims(shape: tuple[int, ...], stride: tuple[int, ...], stored: int, storage: str = "FloatStorage") -> bytes:
    """The pickle of a tensor, whatever its numbers are."""

    def whole(number: int) -> bytes:
        return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)

    def several(numbers: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(whole, numbers)) + b"t"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    place = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text("0") + text("cpu") + whole(stored) + b"tQ"
    rest = whole(0) + several(shape) + several(stride) + b"\x89" + b"ccollections\nOrderedDict\n)R"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + place + rest + b"tR."


class _Runs:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit(3)",))


def forged(rng: random.Random, rows: Tensor) -> Any:
    """In place of one field: no text, no tensor, or one that is larger than its file."""
    numbers = rows.numpy().tobytes()
    big = rng.choice(HUGE)
    good = base64.b64decode(saved(rows))
    made: list[Callable[[], Any]] = [
        lambda: "".join(rng.choices("abc%!é ", k=rng.randint(1, 40))),
        lambda: as_text(rng.randbytes(rng.randint(0, 400))),
        lambda: as_text(good[: rng.randint(1, len(good) - 100)]),
        lambda: as_text(pickle.dumps(_Runs())),
        lambda: archive(pickle.dumps(_Runs(), 2)),
        lambda: saved([rows, rows]),
        lambda: saved({"rows": rows}),
        lambda: saved(rng.choice(["text", 5, None, True])),
        lambda: archive(b"\x80\x02c__builtin__\nbytearray\n\x8a\x05" + (2**36).to_bytes(5, "little") + b"\x85R."),
        lambda: archive(b"\x80\x05\x96" + (2**36).to_bytes(8, "little") + b"."),
        lambda: archive(b"\x80\x02Nr" + (2**31 - 1).to_bytes(4, "little") + b"."),
        lambda: archive(claims((big, rows.shape[1]), (0, 0), 1), b"\0" * 4),
        lambda: archive(claims((big, big), (0, 0), 1), b"\0" * 4),
        lambda: archive(claims(tuple(rows.shape), (rows.shape[1], 1), rows.numel()), numbers[: rng.randrange(0, 64)]),
        lambda: archive(claims(tuple(rows.shape), (rows.shape[1], 1), big), numbers),
        lambda: archive(claims((-1, 4), (4, 1), 4), numbers[:16]),
        lambda: archive(claims(tuple(rows.shape), (-rows.shape[1], 1), rows.numel()), numbers),
        lambda: archive(claims((1,) * 70, (1,) * 70, 1), numbers[:4]),
        lambda: archive(claims((4000, 4000), (4000, 1), 16_000_000), bytes(64_000_000), compression=8),
        lambda: archive(claims(tuple(rows.shape), (rows.shape[1], 1), rows.numel()), numbers, numbers),
        lambda: archive(claims(tuple(rows.shape), (rows.shape[1], 1), rows.numel(), "CharStorage"), numbers),
        lambda: as_text(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 64), }" % 2**40),
        lambda: as_text(_numpy(rows.numpy().astype(np.float64))),
        lambda: "",
        lambda: rng.choice([5, -1, 2.5, True, None, {}, {"a": 1}, {"url": "http://127.0.0.1:9/x"}]),
        lambda: [[1.0, 2.0], [3.0]],
    ]  # fmt: skip
    return rng.choice(made)()


def _numpy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def odd_rows(rng: random.Random, rows: Tensor) -> Any:
    count, width = rows.shape
    spoilt = rows.clone()
    spoilt[rng.randrange(count), rng.randrange(width)] = rng.choice([float("nan"), float("inf"), float("-inf")])
    other = rng.choice([1, width - 1, width + 1, 2 * width, 5000])
    return rng.choice(
        [
            spoilt, torch.ones(count, other), rows[0], rows[None], rows[None, None], rows.sum(), rows[:0],
            rows[:, :0], rows.double(), rows.to(torch.float8_e4m3fn), rows.to(torch.complex64), rows.long(), rows > 0,
            rows.to_sparse(), rows.to_sparse_csr(), rows.clone().requires_grad_(), torch.nn.Parameter(rows),
            torch.quantize_per_tensor(rows, 0.1, 0, torch.qint8), rows.to("meta"), rows[:1].expand(10**6, width),
            torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (2**30, width)), rows.T,
            torch.ones(rng.choice([count + 1, 5 * count, 10_000]), width), torch.ones(1).expand(2**20, 2**10),
        ]
    )  # fmt: skip


def odd_kept(rng: random.Random, kept: Tensor, visual: int) -> Any:
    count, far = len(kept), 2**63 - 1
    wraps = kept.clone()
    wraps[1:3] = torch.tensor([far, -far + 5])  # differences that overflow and come out positive
    doubled = kept.clone()
    doubled[-1] = doubled[-2]
    return rng.choice(
        [
            kept.flip(0), kept[:-1], torch.arange(count + 1), kept + visual, kept - 1 - int(kept[0]), wraps, doubled,
            kept.float(), kept.to(torch.complex64), kept.bool(), kept.to(torch.uint8), kept[None], kept[0], kept[:0],
            kept.to_sparse(), torch.full_like(kept, far), kept + rng.choice([2**31, 2**40, 2**62]), kept.double() / 0,
            torch.arange(1).expand(2**40), kept.to("meta"), torch.zeros(count, dtype=torch.int16),
        ]
    )  # fmt: skip


def odd_visual(rng: random.Random, visual: int, kept: int) -> Any:
    whole = rng.choice([0, -1, -(2**63), visual + 1, visual - 1, kept - 1, 10 * visual, 10**6, *HUGE])
    return rng.choice(
        [
            torch.tensor([whole]), torch.tensor([whole]), torch.tensor([whole]), torch.tensor([float(visual)]),
            torch.tensor([float("nan")]), torch.tensor([complex(visual)]), torch.tensor([True]),
            torch.tensor([visual, visual]), torch.tensor([], dtype=torch.int64), torch.tensor([[[visual]]]),
            torch.tensor([visual], dtype=torch.float16), torch.tensor([7], dtype=torch.uint8),
            torch.ones(1, dtype=torch.int64).expand(2**40), torch.sparse_coo_tensor([[0]], [visual], (2**40,)),
        ]
    )  # fmt: skip


def odd_grid(rng: random.Random, grid: Tensor) -> Any:
    t, h, w = grid.tolist()
    big = rng.choice(HUGE)
    return rng.choice(
        [
            torch.tensor([1000, 1000, 1000]), torch.tensor([t, h, big]), torch.tensor([big, big, big]),
            torch.tensor([t, -h, -w]), torch.tensor([0, h, w]), torch.tensor([t, h + 2, w]),
            torch.tensor([2 * t, h, w]), torch.tensor([2**32, 2**32, 1]),
            torch.tensor([t, 0, w]), torch.tensor([t, h * w, 1]), torch.tensor([h, w]), torch.tensor([t, h, w, 1]),
            grid.float(), grid.bool(), grid[None, None], grid[0], grid.to(torch.complex64),
        ]
    )  # fmt: skip


def mutated(good: dict[str, str], count: int, seed: int = 0) -> Iterator[tuple[str, Any]]:
    """What was done, and what stands for the image in the part.

    Args:
        good: the fields of a part that is taken.
    """
    rng = random.Random(seed)
    tensors = {name: decoded(text) for name, text in good.items()}
    rows, kept, visual = tensors["image_embeds"].float(), tensors["kept"], int(tensors["visual"])
    for number in range(count):
        kind = rng.choice(["rows", "kept", "visual", "grid", "forged", "fields", "whole"])
        torch.manual_seed(seed + number)
        if kind == "rows":
            made = {**good, "image_embeds": saved(odd_rows(rng, rows))}
        elif kind == "kept":
            made = {**good, "kept": saved(odd_kept(rng, kept, visual))}
        elif kind == "visual":
            made = {**good, "visual": saved(odd_visual(rng, visual, len(kept)))}
        elif kind == "grid":  # a family without grids has no such field
            grid = tensors.get("image_grid_thw", torch.tensor([1, 14, 14]))
            made = {**good, "image_grid_thw": saved(odd_grid(rng, grid) if "image_grid_thw" in tensors else grid)}
        elif kind == "forged":
            made = {**good, rng.choice(sorted(good)): forged(rng, rows)}
        elif kind == "fields":
            name = rng.choice(sorted(good))
            swapped = {**good, "image_embeds": good["kept"], "kept": good["image_embeds"]}
            made = rng.choice([
                {other: text for other, text in good.items() if other != name}, {name: good[name]}, {}, swapped,
                {**good, "image_sizes": good["visual"]}, {**good, "": good["kept"]}, {**good, name: None},
            ])  # fmt: skip
        else:
            made = rng.choice([forged(rng, rows), [good], 7, [], saved(odd_rows(rng, rows)), good["kept"]])
        yield f"{number} {kind}", made
