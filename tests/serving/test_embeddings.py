"""What a client encoded itself is bounded by the family's images before anything is made of it."""

from __future__ import annotations

import base64
import io
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.serving.payloads import (
    archive,
    as_text,
    claims,
    forged,
    mutated,
    odd_grid,
    odd_kept,
    odd_rows,
    odd_visual,
    saved,
)
from tests.serving.support import KEEP, QUESTIONS, chat, message_of, proxy
from tests.support.engines import picture
from tests.support.tiny_families import build
from vlmprune.serving.encoder import Encoder
from vlmprune.serving.payload import (
    BadEmbeddings,
    Bounds,
    check_image,
    check_images,
    check_rows,
    checked_parts,
    decoded,
    encoded,
)

LLAVA = Bounds(width=8, visual=16, prompt=100)
QWEN = Bounds(width=8, visual=16, prompt=100, merge=2)


def sentence(error: pytest.ExceptionInfo[BadEmbeddings]) -> str:
    said = str(error.value)
    assert "\n" not in said
    assert len(said) < 400
    return said


def fields(bounds: Bounds, visual: int = 16, rows: int = 4) -> dict[str, Tensor]:
    made = {"image_embeds": torch.ones(rows, 8), "kept": torch.arange(rows) * 2, "visual": torch.tensor([visual])}
    grid = {"image_grid_thw": torch.tensor([1, 2, 2 * visual])} if bounds.merge else {}
    return {**made, **grid}


# --- consistent with each other, and with the family ------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [LLAVA, QWEN])
def test_an_image_that_fits(bounds: Bounds) -> None:
    assert check_image(fields(bounds), bounds) == 16
    check_images([fields(bounds)] * 6, bounds)
    with pytest.raises(BadEmbeddings, match="112 visual tokens together"):
        check_images([fields(bounds)] * 7, bounds)


@pytest.mark.parametrize("count", [0, -1, 17, 1000, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("bounds", [LLAVA, QWEN])
def test_no_more_visual_tokens_than_the_largest_image_has(bounds: Bounds, count: int) -> None:
    with pytest.raises(BadEmbeddings, match="visual tokens") as error:
        check_image({**fields(bounds), "visual": torch.tensor([count])}, bounds)
    sentence(error)


def test_images_of_one_size_have_one_number_of_tokens() -> None:
    assert check_image(fields(QWEN, visual=15), QWEN) == 15
    with pytest.raises(BadEmbeddings, match="images of this model have 16 to 16"):
        check_image(fields(LLAVA, visual=15), LLAVA)


@pytest.mark.parametrize(
    "grid",
    [
        (1000, 1000, 1000), (1, 2, 30), (1, 8, 16), (2, 2, 16), (0, 2, 32), (1, 1, 64), (1, -2, -32), (1, 64, 1),
        (1, 2**32, 2**32), (1, 2**62, 4), (2**62, 2, 32), (1, 3, 32),
    ],
)  # fmt: skip
def test_a_grid_has_the_patches_of_its_tokens(grid: tuple[int, int, int]) -> None:
    check_image({**fields(QWEN), "image_grid_thw": torch.tensor([1, 8, 8])}, QWEN)
    with pytest.raises(BadEmbeddings, match="is not the grid") as error:
        check_image({**fields(QWEN), "image_grid_thw": torch.tensor(grid)}, QWEN)
    sentence(error)


def test_indices_whose_differences_overflow() -> None:
    """In whole numbers of 64 bits the largest and the smallest are neighbours: each difference here is positive."""
    kept = torch.tensor([0, 2**63 - 1, -(2**63) + 6, 5])
    assert bool((torch.diff(kept) > 0).all())
    with pytest.raises(BadEmbeddings, match="ascending"):
        check_image({**fields(LLAVA), "kept": kept}, LLAVA)


# --- what a tensor may be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_odd_tensors(seed: int) -> None:
    """Handed over as tensors, as `LLM.generate` takes them."""
    rng, good = random.Random(seed), fields(QWEN)
    for name, odd in (
        ("image_embeds", odd_rows(rng, good["image_embeds"])),
        ("kept", odd_kept(rng, good["kept"], 16)),
        ("visual", odd_visual(rng, 16, 4)),
        ("image_grid_thw", odd_grid(rng, good["image_grid_thw"])),
    ):
        with pytest.raises(BadEmbeddings) as error:
            check_image({**good, name: odd}, QWEN)
        sentence(error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64])
def test_plain_tensors_are_read_whatever_their_strides(dtype: torch.dtype) -> None:
    whole = torch.arange(60).reshape(5, 12).to(dtype)
    for tensor in (whole, whole.T, whole[::2, 1:], whole[0], whole[0, 0]):
        assert torch.equal(decoded(encoded(tensor)), tensor)
        buffer = io.BytesIO()
        torch.save(tensor, buffer)
        assert torch.equal(decoded(base64.b64encode(buffer.getvalue()).decode()), tensor)


@pytest.mark.parametrize("seed", range(60))
def test_forged_files(seed: int) -> None:
    with pytest.raises(BadEmbeddings) as error:
        check_rows(decoded(forged(random.Random(seed), torch.ones(4, 8))), 8, 16)
    sentence(error)


def test_an_archive_of_very_many_files_is_not_opened() -> None:
    """Python makes an object of every entry of an archive's directory: 27 MB of text took 7 seconds and 138 MB."""
    packed = base64.b64decode(encoded(torch.zeros(4, 8)))
    at = packed.index(b"PK\x01\x02")
    many = packed[:at] + packed[at : packed.index(b"PK\x05\x06")] * 50 + packed[packed.index(b"PK\x05\x06") :]
    with pytest.raises(BadEmbeddings, match=r"more files than .* a tensor"):
        decoded(base64.b64encode(many).decode())


def test_the_forger_can_write_what_is_read() -> None:
    numbers = torch.ones(4, 8).numpy().tobytes()
    good = archive(claims((4, 8), (8, 1), 32), numbers)
    assert torch.equal(decoded(good), torch.ones(4, 8))
    with pytest.raises(BadEmbeddings, match=r"their file holds 128 bytes|cannot be read"):
        decoded(archive(claims((4, 8), (8, 1), 33), numbers))  # one number more than there is
    with pytest.raises(BadEmbeddings, match="base64"):
        decoded(as_text(b"x") + "%")
    with pytest.raises(BadEmbeddings, match=r"torch\._utils\._rebuild_sparse_tensor"):
        decoded(saved(torch.ones(2).to_sparse()))


# --- of the served families, through the proxy ------------------------------------------------------------------------


def test_bounds_are_those_of_the_model(uniform: Encoder) -> None:
    assert uniform.bounds == Bounds(192, 196, 2048)
    model = build("qwen2_5_vl")
    patch = model.config.vision_config.patch_size
    size = {"shortest_edge": 64, "longest_edge": 4096}
    reader = Qwen2VLImageProcessorPil(size=size, patch_size=patch, merge_size=2, temporal_patch_size=2)
    qwen = Encoder(model, "uniform", keep=KEEP, processor=SimpleNamespace(image_processor=reader))
    width = model.config.text_config.hidden_size
    assert qwen.bounds == Bounds(width, 4096 // (patch * 2) ** 2, 512, 2)


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_what_a_client_encoded_is_written_again(pair: Any, positions: str) -> None:
    """Nothing of the client's own file goes on, only the numbers that were read in it."""
    large, _, processor = pair
    encoder = Encoder(large, "uniform", keep=KEEP, processor=processor, positions=positions)
    part = encoder.chat_part(picture(0), QUESTIONS[0])
    assert checked_parts([part["image_embeds"]], encoder.bounds, positions) == [part]
    other = "AAAA" if positions == "original" else {"kept": "AAAA"}
    with pytest.raises(BadEmbeddings, match=f"keeps {positions} positions"):
        checked_parts([other], encoder.bounds, positions)


def test_three_hundred_mutated_payloads_do_not_pass_the_proxy(uniform: Encoder) -> None:
    good = uniform.chat_part(picture(0), QUESTIONS[0])
    with proxy(uniform, "http://127.0.0.1:9", embeddings=True) as (client, _):

        def post(made: Any) -> Any:
            body = chat(QUESTIONS[0], {"type": "image_embeds", "image_embeds": made})
            return client.post("/v1/chat/completions", json=body)

        assert post(good["image_embeds"]).status_code == 503  # it reaches for the engine, which is not there
        for name, made in mutated(good["image_embeds"], 300):
            got = post(made)
            assert got.status_code == 400, (name, got.text)
            assert "\n" not in message_of(got)
