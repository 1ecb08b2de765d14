"""Families without a declared adapter, built tiny from their own default configs, and prompts with features ready made.

Vision towers do not run here: `get_image_features` of the instance returns what a test hands over. The text config
keeps the default's pattern of layers, windows, experts and rotary embeddings, shrunk.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..tiny_families import FIRST_TEXT, LAST_TEXT, PAD, Inputs, _scale_weights

VOCAB, IMAGE, TOKENS = 160, 150, 9
LAYERS = 4
# What a text config may have, and how large it is here.
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "pad_token_id": PAD, "bos_token_id": 1,
    "eos_token_id": None, "sliding_window": 8, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
    "qk_head_dim": 32, "moe_num_shared_experts": 1, "num_kv_heads": 2, "ffn_dim": 96, "word_embed_proj_dim": 64,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "depth": 2,
    "num_heads": 2, "embed_dim": 32, "out_hidden_size": 64, "num_layers": 2,
    # Of an encoder of sound, and of a decoder of pictures, which do not run.
    "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "output_dim": 64,
    "downsample_hidden_size": 16, "base_channels": 32, "num_embeddings": 64, "image_token_embed_dim": 64,
    "projection_dim": 64,
}  # fmt: skip


def shrunk(config: Any, sizes: dict[str, Any], layers: int | None = None) -> Any:
    """The same config, small; lists with one entry a layer keep their first ones."""
    given = config.to_dict()
    depth = given.get("num_hidden_layers")
    for name, value in sizes.items():
        old = given.get(name)
        if old is not None or name in ("pad_token_id", "eos_token_id", "bos_token_id"):
            given[name] = value
            if isinstance(old, list) and isinstance(value, int):  # one for each kind of token
                given[name] = [max(8, value * one // max(old) // 8 * 8) for one in old]
    if layers is not None and isinstance(depth, int):
        given["num_hidden_layers"] = layers
        for name, value in given.items():
            if isinstance(value, list) and len(value) == depth:
                given[name] = _pattern(value, layers)
    if given.get("kv_lora_rank"):  # latent attention: every head has keys of its own
        given["num_key_value_heads"] = given["num_attention_heads"]
    _shrink_rope(given)
    given.pop("model_type", None)
    return type(config)(**given)


def _shrink_rope(given: dict[str, Any]) -> None:
    """M-RoPE's sections add up to half of the rotated width."""
    for rope in (given.get("rope_parameters"), given.get("rope_scaling")):
        for one in (rope, *rope.values()) if isinstance(rope, dict) else ():
            kind = given.get("model_type", "")
            if isinstance(one, dict) and (one.get("mrope_section") or kind.startswith(("glm", "paddleocr", "ernie"))):
                width = given.get("head_dim") or SIZES["hidden_size"] // SIZES["num_attention_heads"]
                half = int(width * one.get("partial_rotary_factor", given.get("partial_rotary_factor") or 1.0)) // 2
                first = half // 4
                if sum(one.get("mrope_section") or ()) == half:  # small already
                    continue
                one["mrope_section"] = [half - 2 * ((half - first) // 2), *[(half - first) // 2] * 2]


def _pattern(kinds: list[Any], layers: int) -> list[Any]:
    """The first entries, the last of them one of another kind where the first are all alike."""
    first = kinds[:layers]
    other = next((kind for kind in kinds if kind != first[0]), None)
    return first if other is None or any(kind != first[0] for kind in first) else [*first[:-1], other]


def default_config(model_type: str, **published: Any) -> Any:
    """The type's default config, shrunk: its own pattern of layers, windows, experts and rotary embeddings.

    `published`: facts of a checkpoint's config that the defaults leave out, in full size; they are shrunk along.
    """
    config = AutoConfig.for_model(model_type, **published)
    for name, part in list(vars(config).items()):
        if name == "text_config" or part is config.get_text_config():
            setattr(config, name, shrunk(part, SIZES, LAYERS))
        elif getattr(part, "model_type", "").startswith("timm"):  # features are handed over, and timm is not installed
            setattr(config, name, shrunk(AutoConfig.for_model("clip_vision_model"), VISION))
        elif hasattr(part, "to_dict"):
            setattr(config, name, shrunk(part, VISION, 2))
    for name in ("projector_hidden_size", "merged_hidden_size"):  # between tower and language model
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, SIZES["hidden_size"])
    return config


def build_from(config: Any, *, attn: str | dict[str, str] = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A random model of a tiny config; the same seed gives the same weights whatever `attn` is."""
    for name in ("video_token_id", "video_token_index"):
        if hasattr(config, name):
            setattr(config, name, IMAGE + 1)
    for name in ("image_token_id", "image_token_index", "image_patch_id"):
        if hasattr(config, name):
            setattr(config, name, IMAGE)
    for name in ("vision_start_token_id", "vision_end_token_id"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, IMAGE - 2)
    config.tie_word_embeddings = False
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = AutoModelForImageTextToText.from_config(config, attn_implementation=attn)
        except ValueError:  # a tower's layers are eager only
            torch.manual_seed(seed)
            text = attn if config.model_type != "hy_v4_vl" else "eager"  # whose text model is eager only
            kinds = {**dict.fromkeys(config.sub_configs, "eager"), "": "eager", "text_config": text}
            model = AutoModelForImageTextToText.from_config(config, attn_implementation=kinds)
    _scale_weights(model, torch.Generator().manual_seed(seed))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()


def hand_over(model: PreTrainedModel, form: str = "list", seed: int = 0) -> None:
    """Let the instance's `get_image_features` return as many features as there are pixels' rows.

    `form`: how the family wants them: a "list" of [n, D], or one tensor, "flat" [N, D] or "stack" [images, n, D].
    """
    width = model.config.get_text_config().hidden_size
    asked = inspect.signature(model.base_model.get_image_features).parameters.values()

    def features(pixel_values: Tensor, *rest: Any, **options: Any) -> BaseModelOutputWithPooling:
        generator = torch.Generator().manual_seed(seed)
        rows: Any = [torch.randn(TOKENS, width, generator=generator) for _ in pixel_values]
        whole = torch.stack(rows)
        pooled = {"list": rows, "flat": whole.flatten(0, 1), "stack": whole}[form]
        out = BaseModelOutputWithPooling(last_hidden_state=whole, pooler_output=pooled)
        out.deepstack_features = [torch.randn(whole.flatten(0, 1).shape, generator=generator) for _ in range(2)]
        return out

    # `generate` hands over the arguments that are named here, and keeps them from the forward.
    given = inspect.signature(features)
    more = [one.replace(default=None) for one in list(asked)[1:] if one.kind is one.POSITIONAL_OR_KEYWORD]
    features.__signature__ = given.replace(parameters=[  # type: ignore[attr-defined]
        given.parameters["pixel_values"], *more, given.parameters["options"]
    ])  # fmt: skip
    model.base_model.get_image_features = features


def make_generic_inputs(model: PreTrainedModel, seed: int = 0) -> Inputs:
    """Two samples, left padded: one image and a few words, two images and some more."""
    generator = torch.Generator().manual_seed(seed)
    rows, config = [], model.config
    opening, closing = (getattr(config, f"vision_{end}_token_id", None) for end in ("start", "end"))
    for images, words in ((1, 5), (2, 8)):
        text = torch.randint(FIRST_TEXT, LAST_TEXT + 1, (words,), generator=generator).tolist()
        ids = [1]
        for _ in range(images):
            word = text.pop()
            ids += [word if opening is None else opening, *[IMAGE] * TOKENS, *([] if closing is None else [closing])]
        rows.append(torch.tensor([*ids, *text]))
    longest = max(map(len, rows))
    ids = torch.stack([torch.cat([torch.full((longest - len(row),), PAD), row]) for row in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
    inputs = Inputs(input_ids=ids, attention_mask=mask, pixel_values=torch.zeros(3, 3, 8, 8))
    taken = inspect.signature(model.base_model.forward).parameters
    if "image_grid_thw" in taken:
        inputs["image_grid_thw"] = torch.tensor([_patches(model.config)] * 3)
    for name in ("mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids"):
        if name in taken:
            inputs[name] = (ids == IMAGE).long()  # by which image tokens see each other, or choose their experts
    if hasattr(model, "query_tokens"):  # a Q-Former, which runs: images that differ
        inputs["pixel_values"] = torch.randn(3, 3, 8, 8, generator=generator)
    if "qformer_input_ids" in inspect.signature(model.forward).parameters:  # it reads the question too
        inputs["qformer_input_ids"] = torch.tensor([[20, 21], [22, 23], [24, 25]])
        inputs["qformer_attention_mask"] = torch.ones(3, 2, dtype=torch.long)
    return inputs


def _patches(config: Any) -> tuple[int, int, int]:
    """Of an image of TOKENS tokens: time, height, width in patches before they are merged."""
    merge = getattr(config.vision_config, "spatial_merge_size", None) or 2
    if hasattr(config, "im_newline_id"):  # HunYuan: one row of 6, the row's end and the image's two ends
        return 1, merge, 6 * merge
    if config.model_type == "hy_v4_vl":  # three rows of 2, each with its end
        return 1, 3 * merge, 2 * merge
    return 1, 3 * merge, 3 * merge
