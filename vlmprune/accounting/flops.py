"""Cost of a prompt counted from shapes: FLOPs of the language model's prefill and bytes of its cache.

2 FLOPs a multiply-add, attention over the causal half only, the LM head for the last row only. Every sample counts its
own tokens, padding left out, so a row costs the same alone and in a batch. The cache is what is really stored: the
padded length of the batch, a sliding window's layers at most window - 1 entries.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.masks import Window, sources_of, windows_of
from ..families import Family

RowCount = int | Tensor  # how many rows stand side by side, or their ascending positions [R] where some are missing
_EXPERTS_USED = ("top_k", "num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")


@dataclass(frozen=True)
class LayerCost:
    """One decoder layer: multiply-adds a token in its linear maps, and what its attention stores and spans: nothing
    where it has none. A recurrence counts among the linear maps, since a token costs it the same wherever it stands."""

    linear: int  # a text (or visual) row of the sequence
    cross_linear: int  # a visual token in a cross-attention layer (keys and values), else 0
    query_width: int  # heads * head width; the mean of keys' and values' where these differ
    kv_width: int  # key-value heads * head width: half of what the cache keeps of a token; 0 where it keeps nothing
    window: Window | None
    cross: bool
    source: int | None = None  # the earlier layer whose keys and values it attends to, None with its own
    state_bytes: int = 0  # what a recurrence remembers of a sample, however long it is
    visual_more: int = 0  # in its linear maps a visual token's multiply-adds beyond `linear`, of experts of its own

    def pairs(self, rows: RowCount, keys: RowCount | None = None) -> int:
        """Query-key pairs that the rows of a prompt see, a window counted in their positions.

        `keys`: of another layer, None where they are of the same rows.
        """
        if keys is not None and keys is not rows:
            at, held = positions(rows), positions(keys)
            first = at.clamp(max=0) if self.window is None else self.window.first(at)
            return int((torch.searchsorted(held, at, right=True) - torch.searchsorted(held, first)).sum())
        if self.window is not None:
            return self.window.pairs(rows)
        n = count(rows)
        return n * (n + 1) // 2

    def flops(self, rows: RowCount, held: RowCount, visual: int) -> int:
        """FLOPs of a sample's rows over the keys of the rows `held`, `visual` of them visual tokens; in a
        cross-attention layer over so many keys."""
        n = count(rows)
        if self.cross:
            seen = self.cross_linear * visual + 2 * self.query_width * n * visual
            return 2 * (self.linear * n + seen) if visual else 0
        more = self.visual_more * min(visual, n)
        return 2 * (self.linear * n + more + 2 * self.query_width * self.pairs(rows, held))

    def entries(self, length: float) -> float:
        """How many of `length` entries the layer's cache holds; the next step brings the last one of its window."""
        return length if self.window is None else min(length, self.window.size - 1)

    def seen(self, length: int) -> int:
        """How many of `length` entries, its own included, a single step sees at most."""
        return length if self.window is None else min(length, self.window.size)


def count(rows: RowCount) -> int:
    """How many rows these are."""
    return rows if isinstance(rows, int) else len(rows)


def positions(rows: RowCount) -> Tensor:
    """Where these rows stand, ascending."""
    return torch.arange(rows) if isinstance(rows, int) else rows


@dataclass(frozen=True)
class ModelCost:
    """The language model's layers, its head's multiply-adds a row, and bytes of a cached number.

    `beside`: multiply-adds a row of the prompt in linear maps beside the layers (what makes Gemma's inputs of each
    layer and its streams), counted for all rows, since nearly all run before anything is dropped.
    """

    layers: tuple[LayerCost, ...]
    head: int
    number_bytes: int
    beside: int = 0

    def flops(
        self,
        text: Sequence[Sequence[RowCount]],
        visual: Sequence[Sequence[int]],
        *,
        last_rows: tuple[int, int] | None = None,
        whole: int | None = None,
    ) -> int:
        """Prefill FLOPs summed over the batch.

        Args:
            text: per layer, per sample, rows of the sequence. visual: the same, keys of a cross-attention layer.
            last_rows: the first layer from which on only the last rows run, and how many; None where all run.
            whole: rows of all prompts together before anything was dropped; None: those of the first layer.
        """
        total = 0
        known: dict[tuple[Any, ...], int] = {}  # layers that differ in their weights alone are counted once
        for i, (cost, samples, keys) in enumerate(zip(self.layers, text, visual, strict=True)):
            last = None if last_rows is None or i < last_rows[0] else last_rows[1]
            held = text[i if cost.source is None else cost.source]
            same = self._kinds[i], last, id(samples), id(keys), id(held)
            if same not in known:
                each = (rows if last is None else positions(rows)[-last:] for rows in samples)
                known[same] = sum(cost.flops(*one) for one in zip(each, held, keys, strict=True))
            total += known[same]
        whole = sum(count(rows) for rows in text[0]) if whole is None else whole
        return total + 2 * self.head * len(text[0]) + 2 * self.beside * whole

    @functools.cached_property
    def _kinds(self) -> list[int]:
        """The first layer that costs what each layer does."""
        return [self.layers.index(layer) for layer in self.layers]

    def lengths(self, rows: int, visual: int) -> list[int]:
        """Per layer, entries cached of a sequence of that many rows; of its visual tokens in cross-attention layers."""
        return [visual if layer.cross else rows for layer in self.layers]

    def step_flops(self, lengths: Sequence[int]) -> int:
        """FLOPs of a single-token step. `lengths`: per layer, entries in its cache, the token's own included."""
        held = [lengths[i if cost.source is None else cost.source] for i, cost in enumerate(self.layers)]
        pairs = zip(self.layers, held, strict=True)
        attended = sum(cost.linear + 2 * cost.query_width * cost.seen(n) for cost, n in pairs)
        return 2 * (self.head + self.beside + attended)

    def kv_bytes(self, lengths: Sequence[float], batch: int) -> int:
        """Bytes of the cache after prefill. `lengths`: per layer, padded entries a row, of a key head on average."""
        entries = sum(cost.entries(n) * cost.kv_width for cost, n in zip(self.layers, lengths, strict=True))
        return batch * (round(2 * entries * self.number_bytes) + sum(cost.state_bytes for cost in self.layers))


# Blocks of experts for text and others for images (Ernie 4.5 VL): a row goes through one of them.
_BY_MODALITY = ("text_moe", "vision_moe")


def linear_size(module: nn.Module, config: Any = None, *, visual: bool = False) -> int:
    """Multiply-adds a row of all linear maps below a module (quantised ones too; adapters' inner maps once).

    A row goes through as many experts as its router chooses, not through all: `top_k` of the router, else of `config`.
    Where images have experts of their own, those of text count, or with `visual` those of images.
    """
    return _linear_size(module, _experts_used(module, config), visual)


def expert_share(module: nn.Module) -> tuple[int, float]:
    """How many weights the experts below a module have, all together, and the share of them that a row goes through.

    Where images have experts of their own, those of text and of images count, and a row goes through one kind.
    """
    total = passed = 0
    used = _experts_used(module, module.config)
    for part in module.modules():
        experts, own = _fused_experts(part)
        listed = part._modules.get("experts")
        if isinstance(listed, nn.ModuleList):
            experts, own = len(listed), list(listed.parameters())
        if experts and own:
            size = sum(weight.numel() for weight in own)
            total, passed = total + size, passed + size // experts * min(used or experts, experts)
    kinds = 2 if any(name.endswith(_BY_MODALITY[1]) for name, _ in module.named_modules()) else 1
    return total, passed / kinds / total if total else 1.0


def _experts_used(module: nn.Module, config: Any) -> int | None:
    return next((n for part in (*module.modules(), config) for name in _EXPERTS_USED if (n := _int(part, name))), None)


def _fused_experts(module: nn.Module) -> tuple[int | None, list[nn.Parameter]]:
    """How many experts a module has, and its weights that hold all of them: one tensor, or one map of the rows each."""
    experts = next((n for name in ("num_experts", "num_local_experts", "groups") if (n := _int(module, name))), None)
    if not experts or "expert" not in type(module).__name__.lower():
        return experts, []
    return experts, [weight for weight in _own_weights(module) if weight.dim() == 3]


def _own_weights(module: nn.Module) -> list[nn.Parameter]:
    return [weight for name, weight in module.named_parameters(recurse=False) if "bias" not in name]


def _linear_size(module: nn.Module, used: int | None, visual: bool) -> int:
    experts, fused = _fused_experts(module)
    if experts and fused:
        return sum(weight.numel() for weight in fused) // experts * min(used or experts, experts)
    inputs, outputs = _int(module, "in_features"), _int(module, "out_features")
    if inputs and outputs and not hasattr(module, "base_layer"):
        return inputs * outputs
    # A router whose weight is a bare parameter: one row for every expert.
    routers = [weight for weight in _own_weights(module) if experts and weight.dim() == 2 and len(weight) == experts]
    total = sum(weight.numel() for weight in routers)
    both = all(hasattr(module, name) for name in _BY_MODALITY)
    for name, part in module.named_children():
        if both and name == _BY_MODALITY[not visual]:
            continue
        size = _linear_size(part, used, visual)
        if name == "experts" and isinstance(part, nn.ModuleList):
            size = size // len(part) * min(used or len(part), len(part))
        total += size
    return total


def _int(thing: Any, name: str) -> int | None:
    # Wrapping asks thousands of modules for numbers that few have, and a module is slow to say that it has none.
    plain = isinstance(thing, nn.Module) and not hasattr(type(thing), name)
    value = vars(thing).get(name) if plain else getattr(thing, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def output_head(model: Any) -> nn.Module | None:
    """The map onto the vocabulary, which a language model may have inside (Nemotron-H)."""
    head: nn.Module | None = model.get_output_embeddings()
    return head or next((part for name, part in model.named_modules() if name.endswith("lm_head")), None)


def model_cost(family: Family, model: Any) -> ModelCost:
    """Count a model's layers once, at wrap time."""
    text = family.language_model(model)
    config = text.config
    number = max(2, next(text.parameters()).element_size())
    layers = []
    attentions = [family.attention(layer) for layer in text.layers]
    windows, sources = windows_of(attentions, config), sources_of(attentions)
    for i, (layer, attention) in enumerate(zip(text.layers, attentions, strict=True)):
        cross = hasattr(layer, "cross_attn")
        keys_values = linear_size(layer.cross_attn.k_proj) + linear_size(layer.cross_attn.v_proj) if cross else 0
        taken, state = (0, 0) if attention is not None else recurrence(layer, number)
        alike = linear_size(layer, config)
        apart = any(_BY_MODALITY[1] in part._modules for part in layer.modules())  # or the walk below finds the same
        linear, more = alike - keys_values + taken, linear_size(layer, config, visual=True) - alike if apart else 0
        attends, kept = widths(attention, config)
        source = None if sources[i] == i else sources[i]
        layers.append(LayerCost(linear, keys_values, attends, kept, windows[i], cross, source, state, more))
    head = output_head(model)
    beside = sum(linear_size(part) for part in text.children() if part is not text.layers)
    return ModelCost(tuple(layers), 0 if head is None else linear_size(head), number, beside)


# How large a recurrence's state is, by the attributes of its module: Gated DeltaNet's, Mamba 2's.
_STATES = (("num_v_heads", "head_k_dim", "head_v_dim"), ("num_heads", "head_dim", "ssm_state_size"))


def recurrence(layer: nn.Module, number_bytes: int) -> tuple[int, int]:
    """Of a layer that does not attend: multiply-adds a token beside its linear maps, and bytes of a sample's state.

    A convolution keeps its last inputs, in the model's precision; a recurrence its state, in fp32, of which every
    number is written and read once a token. A short convolution alone has no state, an MLP neither.
    """
    parts = list(layer.modules())
    convolutions = [part for part in parts if isinstance(part, nn.Conv1d)]
    inputs = sum(part.out_channels * part.kernel_size[0] for part in convolutions)
    sizes = [[_int(part, name) or 0 for name in names] for part in parts for names in _STATES]
    state = sum(math.prod(size) for size in sizes) if convolutions else 0
    return sum(part.weight.numel() for part in convolutions) + 2 * state, inputs * number_bytes + 4 * state


def widths(attention: Any, config: Any) -> tuple[int, int]:
    """`query_width` and `kv_width` of an attention module, 0 of none.

    The modules' own sizes count before the config's: layers may differ in their heads (MiMo), and latent attention
    (DeepSeek) keeps neither keys nor values but what both are made of.
    """
    if attention is None:
        return 0, 0
    heads = _int(attention, "num_heads") or config.num_attention_heads
    width = _int(attention, "head_dim") or getattr(config, "head_dim", None) or config.hidden_size // heads
    if latent := getattr(attention, "kv_a_proj_with_mqa", None):
        both = attention.qk_head_dim + attention.v_head_dim
        return heads * both // 2, latent.out_features // 2
    if getattr(attention, "is_kv_shared_layer", False):  # another layer keeps them
        return heads * width, 0
    keys, values = (_int(getattr(attention, name, None), "out_features") for name in ("k_proj", "v_proj"))
    if keys:  # values that are the keys (Gemma 4) are kept too
        return heads * width, (keys + (values or keys)) // 2
    return heads * width, _key_heads(config, heads) * width


def _key_heads(config: Any, heads: int) -> int:
    """A config that does not tell keys' heads (Persimmon, Fuyu's) has as many as queries have."""
    return getattr(config, "num_key_value_heads", None) or heads
