"""What a layer sees is what its mask and its attention say: windows, chunks, functions of positions.

Text backbones differ in how their configs name a window (all layers by one number, a list of kinds, a chunk size), and
each is compared with the masked reference, which writes the mask out by hand from the modeling file.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as flex
from torch import Tensor
from transformers import PreTrainedModel

import vlmprune
from tests.support.planted import Planted
from tests.support.reference import _visible, language_model, visual_slots
from tests.support.running import assert_near, generate, plan_of, reference
from tests.support.tiny_families import build, make_inputs
from vlmprune.accounting.flops import linear_size
from vlmprune.attention.masks import Window, check_window, take_mask
from vlmprune.flow.compact import compaction

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

WINDOW = 8  # smaller than an image (9 tokens) and than every prompt
BACKBONES: dict[str, dict[str, Any]] = {
    # One number, no list of kinds: every layer has the window.
    "mistral": {"model_type": "mistral", "sliding_window": WINDOW},
    # A list of kinds, made from two other options: layers 2 and 3 have the window.
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    # Only the last layer is a full one, so the first of its kind lies behind the pruned layer.
    "cohere2": {
        "model_type": "cohere2",
        "sliding_window": WINDOW,
        "layer_types": [*["sliding_attention"] * 3, "full_attention"],
    },
    # Chunks counted from a sample's first token; rotary embeddings as one complex tensor; fused experts.
    "llama4": {
        "model_type": "llama4_text",
        "attention_chunk_size": WINDOW,
        "head_dim": 16,
        "num_local_experts": 2,
        "intermediate_size_mlp": 96,
    },
    # Windows in every second layer, a learned sink in every head, eager attention only.
    "gpt_oss": {
        "model_type": "gpt_oss",
        "sliding_window": WINDOW,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
}


@cache
def model_of(backbone: str, attn: str = "sdpa") -> PreTrainedModel:
    return build("llava", text=BACKBONES[backbone], attn="eager" if backbone == "gpt_oss" else attn)


def error(model: PreTrainedModel, kind: str, layer: int, steps: int = 6, **options: Any) -> float:
    """Largest difference of the logits from the masked reference, relative to their size, over prompt and steps."""
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, kind)
    with vlmprune.wrap(model, Planted(plan=plan, layer=layer)):
        logits, out = generate(model, inputs, steps=steps, **options)
    wanted = reference(model, inputs, plan, layer, steps, out.sequences[:, -steps:])
    return float((logits - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("kind", ["equal", "ragged"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_step_equals_masking(backbone, kind, layer):
    assert error(model_of(backbone), kind, layer) < 1e-5


@pytest.mark.parametrize("layer", [0, 2])
def test_eager_attention(layer):
    assert error(model_of("mistral", "eager"), "ragged", layer) < 1e-5


@pytest.mark.parametrize("backbone", ["mistral", "qwen2", "cohere2"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_cache_of_fixed_size(backbone, layer):
    """Its sliding layers are rings of the window's size; its others have columns that nothing fills yet."""
    options = {"cache_implementation": "static", "disable_compile": True}
    assert error(model_of(backbone), "ragged", layer, **options) < 1e-5


@pytest.mark.parametrize("layer", [0, 2])
def test_a_later_turn(layer):
    """Several rows at once, each with its own window over a pruned prompt, with and without padding of their own."""
    model = model_of("mistral")
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")
    more = torch.randint(10, 99, (3, 5), generator=torch.Generator().manual_seed(3))
    with vlmprune.wrap(model, Planted(plan=plan, layer=layer)):
        _, first = generate(model, inputs, steps=3)
        ids = torch.cat([first.sequences, more], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, 8, dtype=torch.long)], dim=1)
        follow = {"input_ids": ids, "attention_mask": mask, "past_key_values": first.past_key_values}
        logits, second = generate(model, follow, steps=4)
    tokens = torch.cat([first.sequences[:, -3:], more, second.sequences[:, -4:]], dim=1)
    assert_near(logits, reference(model, inputs, plan, layer, 12, tokens)[:, -4:])


def test_beams_and_stages():
    model = model_of("mistral")
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")
    options = {"num_beams": 2, "max_new_tokens": 5, "do_sample": False, "output_scores": True}
    with vlmprune.wrap(model, Planted(plan=plan, layer=1)):
        out = model.generate(**inputs, **options, return_dict_in_generate=True)
    tokens = out.sequences[:, -5:]
    chance = reference(model, inputs, plan, 1, 5, tokens).log_softmax(-1)
    score = chance.gather(2, tokens[:, :, None]).squeeze(-1).mean(dim=1)
    torch.testing.assert_close(out.sequences_scores, score, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backbone", ["mistral", "llama4"])
def test_re_indexed_tokens_count_windows_like_a_shorter_prompt(backbone):
    """`positions="compact"` is what an engine does that was given the kept rows only: an unwrapped model on them."""
    model = model_of(backbone)
    inputs = make_inputs(model)
    for kind in ("equal", "ragged"):
        plan = plan_of(model, inputs, kind)
        with vlmprune.wrap(model, Planted(plan=plan, layer=0, positions="compact")):
            logits, out = generate(model, inputs, steps=5)
        recorded: dict[str, Any] = {}
        hook = language_model(model).register_forward_pre_hook(
            lambda module, args, kwargs, into=recorded: into.update(kwargs), with_kwargs=True
        )
        with torch.no_grad():
            model(**inputs)
        hook.remove()
        for i, (slots, kept) in enumerate(zip(visual_slots(model, inputs), plan, strict=True)):
            stays = inputs["attention_mask"][i].bool()
            stays[slots] = False
            stays[slots[list(kept)]] = True
            rows = recorded["inputs_embeds"][i, stays]
            tokens = language_model(model).get_input_embeddings()(out.sequences[i, -5:-1])
            with torch.no_grad():
                alone = language_model(model)(inputs_embeds=torch.cat([rows, tokens])[None], use_cache=False)
                wanted = model.lm_head(alone.last_hidden_state)[0, -5:]
            assert_near(logits[i], wanted)


def test_attention_is_read_within_the_window():
    """FastV in a layer whose window hides most of the image: the eager map's own ranking, zero outside."""
    model, eager = model_of("mistral"), model_of("mistral", "eager")
    inputs = make_inputs(model, text_lengths=(4, 5, 6))
    with torch.no_grad():
        maps = eager(**inputs, output_attentions=True, use_cache=False).attentions[1]
    with vlmprune.wrap(model, "fastv", keep=2, layer=2) as pruned, torch.no_grad():
        model(**inputs)
    for i, slots in enumerate(visual_slots(model, inputs)):
        received = maps[i, :, -1].mean(dim=0)[slots]
        assert bool((received == 0).any())
        assert pruned.report.kept[i].tolist() == sorted(received.topk(2).indices.tolist())


def test_learned_sinks_take_part_in_the_softmax_that_is_read():
    """GPT-OSS: each head's own sink scales its row, so a mean over heads without it ranks otherwise."""
    model = model_of("gpt_oss")
    inputs = make_inputs(model)
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True, use_cache=False).attentions[1]
    with vlmprune.wrap(model, "fastv", keep=3, layer=2) as pruned, torch.no_grad():
        model(**inputs)
    for i, slots in enumerate(visual_slots(model, inputs)):
        wanted = maps[i, :, -1].mean(dim=0)[slots].topk(3).indices
        assert pruned.report.kept[i].tolist() == sorted(wanted.tolist())
    var = vlmprune.VAR(sink_dims=[3])
    with vlmprune.wrap(model, var), pytest.raises(vlmprune.VlmpruneError, match="learned sinks"), torch.no_grad():
        model(**inputs)


# --- cost ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["mistral", "qwen2", "llama4"])
def test_flops_count_the_pairs_that_the_masks_let_through(backbone):
    model = model_of(backbone)
    inputs = make_inputs(model)
    plan, layer = plan_of(model, inputs, "ragged"), 1
    with vlmprune.wrap(model, Planted(plan=plan, layer=layer)) as pruned, torch.no_grad():
        model(**inputs)
    text, valid = model.config.text_config, inputs["attention_mask"].bool()
    gone = torch.zeros_like(valid)
    for row, slots, kept in zip(gone, visual_slots(model, inputs), plan, strict=True):
        row[slots] = True
        row[slots[list(kept)]] = False
    total = full = 0
    for i, decoder in enumerate(language_model(model).layers):
        seen = _visible(model, inputs, valid, i) & valid[:, :, None]
        left = valid & ~gone if i >= layer else valid
        cut = seen & left[:, :, None] & left[:, None]
        linear = linear_size(decoder, text)
        width = text.num_attention_heads * 16
        total += 2 * (linear * int(left.sum()) + 2 * width * int(cut.sum()))
        full += 2 * (linear * int(valid.sum()) + 2 * width * int(seen.sum()))
    head = 2 * text.hidden_size * text.vocab_size * len(valid)
    assert pruned.report.prefill_flops == total + head
    assert pruned.report.prefill_flops_full == full + head


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("backbone", ["mistral", "qwen2"])
def test_cache_bytes_are_those_of_the_real_cache(backbone, layer):
    model = model_of(backbone)
    inputs = make_inputs(model)
    with vlmprune.wrap(model, "random", keep=0.4, layer=layer) as pruned, torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    assert pruned.report.kv_bytes == sum(part.keys.nbytes + part.values.nbytes for part in cache.layers)


@pytest.mark.parametrize(
    ("text", "routed"),
    [
        ({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}, 2 * 3 * 64 * 96 + 4 * 64),
        ({"model_type": "qwen3_moe", "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 3,
          "moe_intermediate_size": 32, "decoder_sparse_step": 1}, 3 * 3 * 64 * 32 + 8 * 64),
        ({"model_type": "gpt_oss", "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
         2 * 3 * 64 * 96 + 4 * 64),
        # One routed expert and the shared one.
        ({"model_type": "llama4_text", "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 1,
          "intermediate_size_mlp": 96}, 2 * 3 * 64 * 96 + 4 * 64),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else None,
)  # fmt: skip
def test_a_row_goes_through_the_experts_that_its_router_chooses(text, routed):
    """Three maps of 64 x 96 an expert (or of the experts' own width), and the router's row for each expert."""
    model = build("llava", text=text, layers=2, attn="eager")
    config = model.config.text_config
    heads, kv = config.num_attention_heads * 16, config.num_key_value_heads * 16
    attention = 2 * 64 * heads + 2 * 64 * kv
    for layer in language_model(model).layers:
        assert linear_size(layer, config) == attention + routed


# --- functions of positions ---------------------------------------------------------------------------------------


@pytest.fixture
def eager_flex(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlexAttention without its compiler, which takes a minute a shape on a CPU."""
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize(
    ("family", "text"), [("llava", None), ("llava", BACKBONES["mistral"]), ("gemma3", None)], ids=str
)
def test_flex_attention(eager_flex, family, text):
    """Prompt and steps as masked, and FastV reads what sdpa's mask lets through (padding got 1.17 of 4 heads)."""
    model, plain = build(family, attn="flex_attention", text=text), build(family, text=text)
    inputs = make_inputs(model)
    plan = plan_of(plain, inputs, "ragged")
    for layer in (0, 2):
        with vlmprune.wrap(model, Planted(plan=plan, layer=layer)), torch.no_grad():
            logits, out = generate(model, inputs, steps=3)
        assert_near(logits, reference(plain, inputs, plan, layer, 3, out.sequences[:, -3:]))
    kept = []
    for one in (model, plain):
        with vlmprune.wrap(one, "sparsevlm", keep=4) as pruned, torch.no_grad():
            one(**inputs)
            kept.append([part.tolist() for part in pruned.report.kept])
    assert kept[0] == kept[1]


# --- the functions ------------------------------------------------------------------------------------------------

KEEP = torch.tensor([[0, 1, 0, 1, 1, 1], [1, 1, 1, 0, 1, 1], [0, 0, 1, 1, 0, 1]]).bool()


def dense(mask: Any, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(mask, flex.BlockMask):
        return mask
    out = torch.zeros(shape, dtype=torch.bool)
    for b, h, q, k in torch.cartesian_prod(*(torch.arange(n) for n in shape)):
        out[b, h, q, k] = mask.mask_mod(b, h, q, k)
    return out


@pytest.mark.parametrize("form", ["bool", "additive", "function"])
def test_masks_lose_rows_and_columns_and_hide_fillers_and_unused_cache(form):
    chosen = compaction(KEEP)
    boolean = torch.rand(3, 1, 6, 9, generator=torch.Generator().manual_seed(0)) > 0.4
    mask: Any = boolean
    if form == "additive":
        mask = torch.zeros(boolean.shape).masked_fill(~boolean, torch.finfo(torch.float32).min)
    if form == "function":
        mask = flex.create_block_mask(lambda b, h, q, k: boolean[b, 0, q, k], 3, None, 6, 9, device="cpu")
    columns = torch.nn.functional.pad(chosen.columns, (0, 3), value=-1)
    with torch.compiler.set_stance("force_eager"):
        out = dense(take_mask(mask, chosen.index, columns, hides=True), (3, 1, 5, 8))
    out = out == 0 if form == "additive" else out
    assert out.shape == (3, 1, 5, 8)
    for row in range(3):
        for q in range(5):
            for k in range(8):
                real = k < 5 and bool(chosen.real[row, k])
                wanted = real and bool(boolean[row, 0, chosen.index[row, q], chosen.index[row, min(k, 4)]])
                assert bool(out[row, 0, q, k]) == wanted


def test_a_mask_of_an_unknown_type_is_refused():
    with pytest.raises(vlmprune.VlmpruneError, match="type dict cannot be pruned"):
        take_mask({}, None, torch.zeros(1, 1), hides=False)


def test_kernels_that_count_windows_themselves_are_refused_only_beyond_the_window():
    class Config:
        _attn_implementation = "flash_attention_2"

    check_window(Config, Window(8), 8)
    check_window(Config, None, 10_000)
    with pytest.raises(vlmprune.VlmpruneError, match="longer than the attention window of 8"):
        check_window(Config, Window(8), 9)
