"""Cost of a prompt counted from shapes: FLOPs of the language model's prefill and bytes of its cache.

2 FLOPs a multiply-add, attention over the causal half only, the LM head for the last row only. Every sample counts its
own tokens, padding left out, so a row costs the same alone and in a batch. The cache is what is really stored: the
padded length of the batch, a sliding window's layers at most window - 1 entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .families import Family


@dataclass(frozen=True)
class LayerCost:
    """One decoder layer: multiply-adds a token in its linear maps, and what its attention stores and spans."""

    linear: int  # a text (or visual) row of the sequence
    cross_linear: int  # a visual token in a cross-attention layer (keys and values), else 0
    query_width: int  # heads * head width
    kv_width: int  # key-value heads * head width
    window: int | None
    cross: bool


@dataclass(frozen=True)
class ModelCost:
    """The language model's layers, its head's multiply-adds a row, and bytes of a cached number."""

    layers: tuple[LayerCost, ...]
    head: int
    number_bytes: int

    def flops(self, text: Sequence[Sequence[int]], visual: Sequence[Sequence[int]]) -> int:
        """Prefill FLOPs summed over the batch.

        Args:
            text: per layer, per sample, rows of the sequence. visual: the same, keys of a cross-attention layer.
        """
        total = 0
        for cost, rows, keys in zip(self.layers, text, visual, strict=True):
            for n, v in zip(rows, keys, strict=True):
                if cost.cross:
                    total += 2 * (cost.linear * n + cost.cross_linear * v + 2 * cost.query_width * n * v) if v else 0
                    continue
                w = min(n, cost.window or n)
                pairs = w * (w + 1) // 2 + (n - w) * w
                total += 2 * (cost.linear * n + 2 * cost.query_width * pairs)
        return total + 2 * self.head * len(text[0])

    def step_flops(self, prompt: int, steps: int, visual: int) -> int:
        """FLOPs of `steps` single-token steps after a prompt of that many rows and visual tokens."""
        total = 0
        for cost in self.layers:
            for step in range(1, steps + 1):
                seen = visual if cost.cross else min(prompt + step, cost.window or prompt + step)
                total += 2 * (cost.linear + 2 * cost.query_width * seen)
        return total + 2 * self.head * steps

    def kv_bytes(self, lengths: Sequence[int], batch: int) -> int:
        """Bytes of the cache after prefill. `lengths`: per layer, padded entries a row."""
        total = 0
        for cost, length in zip(self.layers, lengths, strict=True):
            entries = min(length, cost.window - 1) if cost.window else length
            total += 2 * batch * entries * cost.kv_width * self.number_bytes
        return total


def linear_size(module: nn.Module) -> int:
    """Multiply-adds a row of all linear maps below a module (quantised ones too; adapters' inner maps once)."""
    total = 0
    for part in module.modules():
        inputs, outputs = getattr(part, "in_features", None), getattr(part, "out_features", None)
        if isinstance(inputs, int) and isinstance(outputs, int) and not hasattr(part, "base_layer"):
            total += inputs * outputs
    return total


def model_cost(family: Family, model: Any) -> ModelCost:
    """Count a model's layers once, at wrap time."""
    text = family.language_model(model)
    config = text.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    types = getattr(config, "layer_types", None) or [None] * len(text.layers)
    layers = []
    for layer, kind in zip(text.layers, types, strict=True):
        cross = hasattr(layer, "cross_attn")
        keys_values = linear_size(layer.cross_attn.k_proj) + linear_size(layer.cross_attn.v_proj) if cross else 0
        window = config.sliding_window if kind == "sliding_attention" else None
        linear = linear_size(layer) - keys_values
        layers.append(LayerCost(linear, keys_values, heads * width, kv_heads * width, window, cross))
    head = model.get_output_embeddings()
    number = next(text.parameters()).element_size()
    return ModelCost(tuple(layers), linear_size(head), max(2, number))
