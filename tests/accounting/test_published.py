"""Published models by name: their sizes against their checkpoints' and against hand counts, and how names are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub import close_session

from tests.support.commands import refused, run
from tests.support.grid import few
from vlmprune import VlmpruneError
from vlmprune.accounting.configs import load_config
from vlmprune.accounting.model_sizes import model_size, tokens_per_image, video_tokens
from vlmprune.accounting.published import COUNTS, MODELS, find, near
from vlmprune.accounting.roofline import ModelSize

# Weights of checkpoints whose model.safetensors.index.json is known: its `total_size` over two bytes.
# Weights that the headers of checkpoints, or people who loaded them, count.
EXACT = {
    "qwen2.5-vl-7b": 8_292_166_656, "qwen2.5-vl-32b": 33_452_718_336, "qwen3-vl-8b": 8_767_123_696,
    "qwen3-vl-2b": 2_127_532_032, "smolvlm2-256m": 256_484_928, "smolvlm2-500m": 507_482_304,
    "smolvlm2-2.2b": 2_246_784_880, "internvl3-1b": 938_193_024, "internvl3-2b": 2_088_957_440,
}  # fmt: skip
# Billions that a model's card says where its name says something else (Gemma 4: with the embeddings of each layer).
CARDS = {"llama-4-scout": 109, "gemma-4-e2b": 5.1, "gemma-4-e4b": 8}


@cache
def sized(name: str) -> ModelSize:
    return model_size(load_config(name)[1], dtype="bf16", visual=None, name=name)


def test_every_name_means_one_model() -> None:
    assert len(MODELS) >= 15
    for model in MODELS:
        for form in (model.name, model.name.upper(), model.hub, model.hub.lower(), model.hub.partition("/")[2]):
            assert find(form) is model, form


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Qwen2.5-VL-7B", "qwen2.5-vl-7b"), ("qwen2.5-vl-7b-instruct", "qwen2.5-vl-7b"),
        ("QWEN2_5_VL_7B", "qwen2.5-vl-7b"),
        ("llava-1.5-7b-hf", "llava-1.5-7b"), ("gemma3-4b", "gemma-3-4b"), ("gemma-4-26B-A4B-it", "gemma-4-26b-a4b"),
        ("SmolVLM2-2.2B-Instruct", "smolvlm2-2.2b"), ("internvl3 8b", "internvl3-8b"),
        ("someone/Qwen2.5-VL-7B-Instruct", None), ("qwen2.5-vl", None), ("7b", None), ("", None),
    ],
)  # fmt: skip
def test_names_are_matched_kindly(text: str, name: str | None) -> None:
    found = find(text)
    assert (found.name if found else None) == name


def test_near_names() -> None:
    assert near("qwen2.5-vl-70b")[0] in ("qwen2.5-vl-7b", "qwen2.5-vl-72b")
    assert near("lava-1.5-7b")[0] == "llava-1.5-7b"
    assert near("zzzz") == []


@pytest.mark.parametrize("name", few([model.name for model in MODELS], every=8))
def test_a_model_is_as_large_as_its_checkpoint(name: str) -> None:
    size, (said, active, visual) = sized(name), COUNTS[name]
    weights = size.all_bytes // 2
    assert (float(f"{weights / 1e9:.3g}"), size.visual) == (said, visual)
    assert (float(f"{size.active_bytes / 2e9:.3g}") if size.expert_share < 1 else None) == active
    if name in EXACT:
        assert weights == EXACT[name]


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_about_what_a_name_says(name: str) -> None:
    """Names count the language model alone, or round: Qwen2.5-VL 7B has 8.29, LLaVA-OneVision 0.5B has 0.894."""
    said = CARDS.get(name) or float(re.findall(r"-e?([0-9.]+)[bm]", name)[0]) / (1000 if name.endswith("m") else 1)
    assert -0.07 * said < COUNTS[name][0] - said < 0.1 * said + 1.2


def test_experts_by_hand() -> None:
    """Qwen3-VL-30B-A3B: 48 layers of 128 experts, of which a token uses 8; each has three maps of 2,048 by 768."""
    size, expert = sized("qwen3-vl-30b-a3b"), 3 * 2048 * 768
    assert size.expert_bytes == 2 * 48 * 128 * expert
    assert size.expert_share == pytest.approx(8 / 128)
    attention = 2048 * (32 * 128 + 2 * 4 * 128) + 32 * 128 * 2048
    layer = attention + 2048 * 128 + 8 * expert  # the router has a row per expert
    assert {part.linear for part in size.cost.layers} == {layer}
    assert size.cost.head == 2048 * 151_936
    assert size.active_bytes / 2e9 == pytest.approx(3.3, abs=0.1)  # as Qwen's card of its text model says


@pytest.mark.parametrize(
    ("name", "active"), [("llama-4-scout", 17), ("qwen3-vl-235b-a22b", 22), ("gemma-4-26b-a4b", 4)]
)
def test_active_weights_are_what_a_name_says(name: str, active: float) -> None:
    assert COUNTS[name][1] == pytest.approx(active, rel=0.06)


def test_experts_that_a_batch_reads_by_trial() -> None:
    """Each row chooses `used` of `experts` at random: how many are chosen by any, on average of all choices."""
    size = ModelSize("", sized("qwen3-vl-2b").cost, 1000, 0, 1000, 0, 1, expert_bytes=600, expert_share=2 / 6)
    pairs = [(i, j) for i in range(6) for j in range(i)]
    for rows, choices in ((1, [(a,) for a in pairs]), (2, [(a, b) for a in pairs for b in pairs])):
        read = sum(len(set().union(*one)) for one in choices) / len(choices)
        assert size.read_bytes(rows) == pytest.approx(400 + read * 100)


def test_a_hybrid_by_hand() -> None:
    """Qwen3.5-27B: 16 of 64 layers keep keys and values, the others a state however long the prompt is."""
    cost, rows = sized("qwen3.5-27b").cost, 1000
    assert [part.kv_width > 0 for part in cost.layers] == [i % 4 == 3 for i in range(64)]
    keys = 16 * rows * 2 * 4 * 256 * 2  # layers, rows, keys and values, heads, width, bytes
    inputs = 2 * 16 * 128 + 48 * 128  # of the convolution: queries, keys, values
    states = 48 * (inputs * 4 * 2 + 48 * 128 * 128 * 4)  # its kernel of 4 in bf16; the recurrence in fp32
    assert cost.kv_bytes([rows] * 64, 1) == keys + states
    assert cost.kv_bytes([rows] * 64, 3) == 3 * (keys + states)
    full = 5120 * (2 * 24 * 256 + 2 * 4 * 256) + 24 * 256 * 5120 + 3 * 5120 * 17_408  # queries come with a gate each
    assert cost.layers[3].linear == full


def test_sliding_windows_by_hand() -> None:
    """Gemma 3 4B: layers 5, 11, ... see everything, the others 1,024 positions, their own included."""
    cost, rows = sized("gemma-3-4b").cost, 3000
    assert [i for i, part in enumerate(cost.layers) if part.window is None] == [5, 11, 17, 23, 29]
    assert cost.kv_bytes([rows] * 34, 1) == (5 * rows + 29 * 1023) * 2 * 4 * 256 * 2
    pairs = sum(min(row + 1, 1024) for row in range(rows))
    assert cost.layers[0].pairs(rows) == pairs
    assert cost.layers[5].pairs(rows) == rows * (rows + 1) // 2
    layer = 2560 * (8 + 2 * 4) * 256 + 8 * 256 * 2560 + 3 * 2560 * 10_240
    attended = 29 * pairs + 5 * rows * (rows + 1) // 2
    by_hand = 2 * (34 * layer * rows + 2 * 8 * 256 * attended + 2560 * 262_208)
    assert cost.flops([[rows]] * 34, [[0]] * 34) == by_hand


def test_chunks_by_hand() -> None:
    """Llama 4 Scout: every fourth layer sees everything, the others their chunk of 8,192."""
    cost, rows = sized("llama-4-scout").cost, 10_000
    assert [i for i, part in enumerate(cost.layers) if part.window is None] == list(range(3, 48, 4))
    assert cost.layers[0].pairs(rows) == sum(row % 8192 + 1 for row in range(rows))
    expert = 3 * 5120 * 8192  # one of 16, and the shared one
    assert cost.layers[0].linear == 5120 * (40 + 2 * 8) * 128 + 40 * 128 * 5120 + 5120 * 16 + 2 * expert


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("qwen2.5-vl-7b", 32 * 32), ("qwen3-vl-8b", 28 * 28), ("llava-1.5-7b", 24 * 24), ("internvl3-8b", 16 * 16),
        ("gemma-3-4b", 256), ("gemma-4-31b", 280), ("llama-4-scout", 12 * 12), ("smolvlm2-2.2b", 9 * 9),
        ("smolvlm2-500m", 8 * 8), ("mistral-small-3.1-24b", 32 * 32), ("llava-onevision-7b", 27 * 27),
    ],
)  # fmt: skip
def test_visual_tokens_of_an_image(name: str, tokens: int) -> None:
    """Sides of the grid as the processors make it: 896 / 28, 896 / 32, 336 / 14, 448 / 28, ..."""
    config = load_config(name)[1]
    assert (tokens_per_image(config), COUNTS[name][2]) == (tokens, tokens)


@pytest.mark.parametrize(
    ("name", "frames", "tokens"),
    [
        ("qwen2.5-vl-7b", 120, 24_300), ("qwen2.5-vl-7b", 1, 405), ("qwen2.5-vl-7b", 3, 810),
        ("qwen3-vl-8b", 2, 13 * 24), ("llava-onevision-7b", 32, 6273), ("smolvlm2-2.2b", 64, 5184),
        ("internvl3-8b", 32, 8192), ("gemma-4-31b", 32, 32 * 70),
    ],
)  # fmt: skip
def test_visual_tokens_of_a_video(name: str, frames: int, tokens: int) -> None:
    """As processors make them: frames of 420 x 756 in pairs, frames pooled to 14 x 14 and one newline, tiles."""
    assert video_tokens(load_config(name)[1], frames)[0] == tokens


def test_a_plan_of_a_video() -> None:
    shown = run("plan", "llava-onevision-0.5b", "--frames", "32", "--keep", "0.1", "--method", "random")
    assert "32 frames, 6,273 visual and 64 text tokens" in shown
    made = json.loads(run("plan", "llava-onevision-0.5b", "--frames", "32", "--keep", "0.1", "--json"))
    assert (made["prompt"]["visual"], made["rows"][1]["kept"]) == (6273, 627)
    # All patches of a frame go through the tower, also those that pooling makes one.
    image = json.loads(run("plan", "llava-onevision-0.5b", "--keep", "0.1", "--json"))
    assert made["rows"][0]["vision"] == pytest.approx(32 * image["rows"][0]["vision"], rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llava-1.5-7b", "--frames", "8"], "How many tokens a 'llava' makes of a video is not known here"),
        (["qwen2.5-vl-7b", "--frames", "8", "--visual", "9"], "--frames and --visual both say"),
        (["qwen2.5-vl-7b", "--frames", "0"], "'--frames': must be a number from 1"),
    ],
)
def test_videos_that_cannot_be_planned(arguments: list[str], message: str) -> None:
    assert message in refused("plan", *arguments)


def test_the_list_has_every_model() -> None:
    shown = run("plan", "--list")
    for model in MODELS:
        assert model.name in shown and model.hub in shown
        assert model.source == "config.json" or model.source in shown
    records = json.loads(run("plan", "--list", "--json"))
    assert [one["name"] for one in records] == [model.name for model in MODELS] == list(COUNTS)


def write(folder: Path, values: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


@pytest.mark.parametrize("values", [{}, {"text_config": {}}, {"vision_config": None, "torch_dtype": "bfloat16"}])
def test_a_model_type_alone_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    message = refused("plan", write(tmp_path, {"model_type": "qwen2_5_vl", **values}))
    assert "states no sizes, only that it is a 'qwen2_5_vl'" in message
    assert "qwen2.5-vl-7b" in message


def test_sizes_that_are_defaults_are_said(tmp_path: Path) -> None:
    """As LLaVA-1.5's own config.json leaves them out, being Llama's defaults."""
    text = {"model_type": "llama", "vocab_size": 32_064}
    folder = write(tmp_path, {"model_type": "llava", "text_config": text, "vision_config": {"image_size": 336}})
    line = "The config does not state hidden_size=4096, num_hidden_layers=32: transformers' defaults count."
    assert line in run("plan", folder, "--keep", "0.5")
    assert json.loads(run("plan", folder, "--keep", "0.5", "--json"))["assumed"] == line
    text |= {"hidden_size": 256, "num_hidden_layers": 2}
    write(tmp_path, {"model_type": "llava", "text_config": text})
    assert load_config(str(tmp_path))[2].startswith("The config does not state vision_config:")
    write(tmp_path, {"model_type": "llava", "text_config": text, "vision_config": {"image_size": 336}})
    assert load_config(str(tmp_path))[2] == ""


def changed(name: str, **values: Any) -> dict[str, Any]:
    """A published config with other values; `text_config__hidden_size` is one inside."""
    config: dict[str, Any] = json.loads(json.dumps(find(name).config))  # type: ignore[union-attr]  # there is one
    for path, value in values.items():
        *parts, last = path.split("__")
        where = config
        for part in parts:
            where = where[part]
        where[last] = value
    return config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": ["x"]}, "unknown model_type ['x']"),
        (changed("smolvlm2-256m", text_config__num_hidden_layers=0), "has no layers; check num_hidden_layers"),
        (changed("smolvlm2-256m", text_config__num_hidden_layers=10**5), "num_hidden_layers=100000, more than 1000"),
        (changed("smolvlm2-256m", vision_config__num_hidden_layers=10**9), "more than 1000; give a model"),
        (changed("qwen3-vl-30b-a3b", text_config__num_experts=10**6), "has num_experts=1000000, more than 10000"),
        (changed("smolvlm2-256m", text_config__hidden_size="x"), "is not a valid config of a 'smolvlm'"),
        (changed("smolvlm2-256m", text_config=[]), "is not a valid config of a 'smolvlm'"),
        (changed("qwen2.5-vl-3b", text_config__num_attention_heads=3), "is not built as an image-text model"),
        (changed("llava-1.5-7b", text_config__hidden_size=2**40), "is not built as an image-text model"),
        ({"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2}, "A 'qwen2' is not built as an image-text"),
    ],
)
def test_configs_that_make_no_model(tmp_path: Path, values: Any, message: str) -> None:
    assert message in refused("plan", write(tmp_path, values))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}".encode("utf-16"), "cannot be read"), (b"", "is not a JSON object"), (b"3", "is not a JSON object"),
        (b"[" * 100_000, "is not a JSON object"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert message in refused("plan", str(tmp_path / "config.json"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "The model's name is empty ('')"), (" \t", "The model's name is empty"),
        ("folder", "The folder 'folder' has no config.json"), (".", "The folder '.' has no config.json"),
        ("/dev/null", "'/dev/null' is no file"), ("nowhere/config.json", "There is no config at 'nowhere/config.json'"),
        ("list.json", "is not a JSON object (a list)"), ("empty.json", "states no model_type"),
        ("x" * 5000, "no published model has this name"),
    ],
)  # fmt: skip
def test_names_and_paths_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, message: str
) -> None:
    """`plan ''` looked for a config.json in the working directory; a missing config.json was asked of the Hub."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("list.json").write_text("[1]")
    Path("empty.json").write_text("{}")
    line = refused("plan", given)
    assert message in line
    assert len(line) < 400
    assert refused("plan", "qwen2.5-vl-3b", "--guide", given) == line


def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(changed("smolvlm2-256m")).encode())
    assert load_config(str(tmp_path))[1].model_type == "smolvlm"


def test_quantised_weights_are_said_to_count_in_full(tmp_path: Path) -> None:
    folder = write(tmp_path, changed("smolvlm2-256m", quantization_config={"quant_method": "awq"}))
    assert load_config(folder)[2] == "Its weights are quantised (awq), but count in full here."


def test_patches_of_no_size_are_no_division(tmp_path: Path) -> None:
    folder = write(tmp_path, changed("smolvlm2-256m", vision_config__patch_size=0))
    assert tokens_per_image(load_config(folder)[1]) > 0


def test_a_flat_config_states_its_sizes(tmp_path: Path) -> None:
    """Qwen's config.json has the sizes of the text model beside the tower's config."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4}
    values = {"model_type": "qwen2_5_vl", "num_key_value_heads": 4, "vision_config": {"depth": 1}, **sizes}
    _, config, assumed = load_config(write(tmp_path, values))
    assert (config.get_text_config().num_hidden_layers, assumed) == (2, "")


# -- the Hub -----------------------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """Answers for config.json as the Hub does."""

    def do_GET(self) -> None:
        answers = {
            "/org/there/resolve/main/config.json": (200, json.dumps(find("qwen2.5-vl-3b").config)),  # type: ignore[union-attr]  # there is one
            "/org/closed/resolve/main/config.json": (401, ""),
            "/org/page/resolve/main/config.json": (200, "<html>"),
        }
        status, text = answers.get(self.path, (404, ""))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *given: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A Hub on this machine, and an empty cache."""
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        close_session()
        yield
        server.shutdown()
    close_session()


def test_any_id_on_the_hub(hub: None) -> None:
    made = json.loads(run("plan", "org/there", "--keep", "0.5", "--json"))
    assert (made["config"], made["weights"]) == ("org/there", sized("qwen2.5-vl-3b").all_bytes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/closed", "has no such model, or it is private or gated: 'org/closed'"),
        ("org/missing", "has no config.json of it: 'org/missing'"),
        ("org/page", "'org/page' is not a JSON object"),
        ("org/Qwen2.5-VL-7B", "or qwen2.5-vl-7b"),
    ],
)
def test_what_the_hub_does_not_give(hub: None, name: str, message: str) -> None:
    assert message in refused("plan", name)


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One sentence at once; a config that was downloaded before is read."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    close_session()
    message = refused("plan", "org/there")
    assert "'org/there' is no folder here, and the Hugging Face Hub does not answer" in message
    stored = tmp_path / "models--org--there"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs/main").write_text("abc")
    (stored / "snapshots").mkdir()
    write(stored / "snapshots/abc", dict(find("qwen2.5-vl-3b").config))  # type: ignore[union-attr]  # there is one
    assert load_config("org/there")[1].model_type == "qwen2_5_vl"
    close_session()


@pytest.mark.parametrize("text", ["no/such/place", "./nothing", "~nobody/x", "a" * 5000, "", "qwen9-vl", "..", "é/é"])
def test_what_is_no_model(text: str) -> None:
    with pytest.raises(VlmpruneError):
        load_config(text)
