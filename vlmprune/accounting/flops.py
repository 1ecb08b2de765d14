"""Cost of a prompt counted from shapes: FLOPs of the language model's prefill and bytes of its cache.

2 FLOPs a multiply-add, attention over the causal half only, the LM head for the last row only. Every sample counts its
own tokens, padding left out, so a row costs the same alone and in a batch. The cache is what is really stored: the
padded length of the batch, a sliding window's layers at most window - 1 entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..attention.masks import Window, windows_of
from ..families import Family

RowCount = int | Tensor  # how many rows stand side by side, or their ascending positions [R] where some are missing
_EXPERTS_USED = ("top_k", "num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")


@dataclass(frozen=True)
class LayerCost:
    """One decoder layer: multiply-adds a token in its linear maps, and what its attention stores and spans."""

    linear: int  # a text (or visual) row of the sequence
    cross_linear: int  # a visual token in a cross-attention layer (keys and values), else 0
    query_width: int  # heads * head width; the mean of keys' and values' where these differ
    kv_width: int  # key-value heads * head width: half of what the cache keeps of a token
    window: Window | None
    cross: bool

    def pairs(self, rows: RowCount) -> int:
        """Query-key pairs that the rows of a prompt see, a window counted in their positions."""
        if self.window is not None:
            return self.window.pairs(rows)
        n = count(rows)
        return n * (n + 1) // 2

    def entries(self, length: int) -> int:
        """How many of `length` entries the layer's cache holds; the next step brings the last one of its window."""
        return length if self.window is None else min(length, self.window.size - 1)

    def seen(self, length: int) -> int:
        """How many of `length` entries, its own included, a single step sees at most."""
        return length if self.window is None else min(length, self.window.size)


def count(rows: RowCount) -> int:
    """How many rows these are."""
    return rows if isinstance(rows, int) else len(rows)


@dataclass(frozen=True)
class ModelCost:
    """The language model's layers, its head's multiply-adds a row, and bytes of a cached number."""

    layers: tuple[LayerCost, ...]
    head: int
    number_bytes: int

    def flops(self, text: Sequence[Sequence[RowCount]], visual: Sequence[Sequence[int]]) -> int:
        """Prefill FLOPs summed over the batch.

        Args:
            text: per layer, per sample, rows of the sequence. visual: the same, keys of a cross-attention layer.
        """
        total = 0
        for cost, samples, keys in zip(self.layers, text, visual, strict=True):
            for rows, v in zip(samples, keys, strict=True):
                n = count(rows)
                if cost.cross:
                    total += 2 * (cost.linear * n + cost.cross_linear * v + 2 * cost.query_width * n * v) if v else 0
                    continue
                total += 2 * (cost.linear * n + 2 * cost.query_width * cost.pairs(rows))
        return total + 2 * self.head * len(text[0])

    def lengths(self, rows: int, visual: int) -> list[int]:
        """Per layer, entries cached of a sequence of that many rows; of its visual tokens in cross-attention layers."""
        return [visual if layer.cross else rows for layer in self.layers]

    def step_flops(self, lengths: Sequence[int]) -> int:
        """FLOPs of a single-token step. `lengths`: per layer, entries in its cache, the token's own included."""
        pairs = zip(self.layers, lengths, strict=True)
        return 2 * self.head + sum(2 * (cost.linear + 2 * cost.query_width * cost.seen(n)) for cost, n in pairs)

    def kv_bytes(self, lengths: Sequence[int], batch: int) -> int:
        """Bytes of the cache after prefill. `lengths`: per layer, padded entries a row."""
        entries = sum(cost.entries(n) * cost.kv_width for cost, n in zip(self.layers, lengths, strict=True))
        return 2 * batch * entries * self.number_bytes


def linear_size(module: nn.Module, config: Any = None) -> int:
    """Multiply-adds a row of all linear maps below a module (quantised ones too; adapters' inner maps once).

    A row goes through as many experts as its router chooses, not through all: `top_k` of the router, else of `config`.
    """
    used = next((n for part in (*module.modules(), config) for name in _EXPERTS_USED if (n := _int(part, name))), None)
    return _linear_size(module, used)


def _linear_size(module: nn.Module, used: int | None) -> int:
    experts = next((n for name in ("num_experts", "num_local_experts", "groups") if (n := _int(module, name))), None)
    own = [weight for name, weight in module.named_parameters(recurse=False) if "bias" not in name]
    if experts and "expert" in type(module).__name__.lower():  # one tensor for all, or one map of the rows for each
        own = [weight for weight in own if weight.dim() == 3]
        if own:
            return sum(weight.numel() for weight in own) // experts * min(used or experts, experts)
    inputs, outputs = _int(module, "in_features"), _int(module, "out_features")
    if inputs and outputs and not hasattr(module, "base_layer"):
        return inputs * outputs
    # A router whose weight is a bare parameter: one row for every expert.
    total = sum(weight.numel() for weight in own if experts and weight.dim() == 2 and len(weight) == experts)
    for name, part in module.named_children():
        size = _linear_size(part, used)
        if name == "experts" and isinstance(part, nn.ModuleList):
            size = size // len(part) * min(used or len(part), len(part))
        total += size
    return total


def _int(thing: Any, name: str) -> int | None:
    value = getattr(thing, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def model_cost(family: Family, model: Any) -> ModelCost:
    """Count a model's layers once, at wrap time."""
    text = family.language_model(model)
    config = text.config
    layers = []
    attentions = [family.attention(layer) for layer in text.layers]
    for layer, attention, window in zip(text.layers, attentions, windows_of(attentions, config), strict=True):
        cross = hasattr(layer, "cross_attn")
        keys_values = linear_size(layer.cross_attn.k_proj) + linear_size(layer.cross_attn.v_proj) if cross else 0
        linear = linear_size(layer, config) - keys_values
        attends, kept = widths(attention, config)
        layers.append(LayerCost(linear, keys_values, attends, kept, window, cross))
    head = model.get_output_embeddings()
    number = next(text.parameters()).element_size()
    return ModelCost(tuple(layers), linear_size(head), max(2, number))


def widths(attention: Any, config: Any) -> tuple[int, int]:
    """`query_width` and `kv_width` of an attention module.

    The modules' own sizes count before the config's: layers may differ in their heads (MiMo), and latent attention
    (DeepSeek) keeps neither keys nor values but what both are made of.
    """
    heads = config.num_attention_heads
    width = _int(attention, "head_dim") or getattr(config, "head_dim", None) or config.hidden_size // heads
    if latent := getattr(attention, "kv_a_proj_with_mqa", None):
        both = attention.qk_head_dim + attention.v_head_dim
        return heads * both // 2, latent.out_features // 2
    parts = [_int(getattr(attention, name, None), "out_features") for name in ("k_proj", "v_proj")]
    kept = sum(part for part in parts if part) if all(parts) else 2 * config.num_key_value_heads * width
    return heads * width, kept // 2
