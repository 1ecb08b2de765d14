"""A vision-language model that exists here only, as a user would write one: a decoder with rotary embeddings, images as
rows of its sequence, and, where its config says so, layers whose tokens mix by a decaying memory instead of attention.

Shapes: B batch, S rows, T rows so far, D width.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

WIDTH, HEADS, HEAD = 64, 4, 16
IMAGE, PAD, TOKENS = 150, 0, 9
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class OwnConfig(PreTrainedConfig):
    model_type = "own_vlm"

    def __init__(self, image_token_id=IMAGE, num_hidden_layers=4, remembering=(), **kwargs):
        self.image_token_id, self.num_hidden_layers, self.remembering = image_token_id, num_hidden_layers, remembering
        self.vocab_size, self.hidden_size = 160, WIDTH
        self.num_attention_heads = self.num_key_value_heads = HEADS
        super().__init__(**{"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": None} | kwargs)


def turned(states, cos, sin):
    first, second = states.chunk(2, -1)
    return states * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


class Attention(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.config, self.layer_idx, self.scaling, self.is_causal = config, index, HEAD**-0.5, True
        self.num_key_value_groups, self.head_dim = 1, HEAD
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, states, position_embeddings, attention_mask, cache):
        parts = [part(states).unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for part in (self.q_proj, self.k_proj)]
        query, key = (turned(part, *position_embeddings) for part in parts)
        value = self.v_proj(states).unflatten(-1, (HEADS, HEAD)).transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        kernel = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        out, _ = kernel(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling)
        return self.o_proj(out.flatten(2))


class Memory(Attention):
    """What was seen fades with every row: no mask decides what reaches a row, but padding enters as zero."""

    def forward(self, states, position_embeddings, attention_mask, cache):
        value = self.v_proj(states)
        if attention_mask is not None and attention_mask.dim() == 2:
            value = value * attention_mask[:, -states.shape[1] :, None].to(value.dtype)
        if cache is not None:
            value = cache.update(value[:, None], value[:, None], self.layer_idx)[1][:, 0]
        at = torch.arange(value.shape[1], device=value.device)
        back = at[-states.shape[1] :, None] - at
        return self.o_proj(torch.where(back >= 0, 0.95**back, 0.0).to(value.dtype) @ value)


class Layer(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.self_attn = (Memory if index in config.remembering else Attention)(config, index)
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH, eps=1e-6) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 96, bias=False), nn.SiLU(), nn.Linear(96, WIDTH, bias=False))

    def forward(self, hidden_states, position_embeddings, attention_mask=None, cache=None):
        mixed = self.self_attn(self.norms[0](hidden_states), position_embeddings, attention_mask, cache)
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.norms[1](hidden_states))


class OwnPreTrained(PreTrainedModel):
    config_class = OwnConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.12)


class OwnDecoder(OwnPreTrained):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, WIDTH)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(WIDTH)
        self.post_init()

    def forward(self, inputs_embeds, attention_mask=None, position_ids=None, cache=None, use_cache=None):
        rows = inputs_embeds.shape[1]
        if use_cache and cache is None:
            cache = DynamicCache()
        before = 0 if cache is None else cache.get_seq_length()
        at = torch.arange(before + rows, device=inputs_embeds.device)
        seen = at <= at[before:, None]
        if attention_mask is not None:
            seen = seen & attention_mask[:, None, None, :].bool() | (at == at[before:, None])
        if position_ids is None:
            position_ids = at[None, before:]
        angles = position_ids[..., None] / 100 ** (torch.arange(0, HEAD, 2, device=at.device) / HEAD)
        angles = torch.cat([angles, angles], -1)
        turns = angles.cos().to(inputs_embeds.dtype), angles.sin().to(inputs_embeds.dtype)
        states = inputs_embeds
        for i, layer in enumerate(self.layers):
            mask = attention_mask if i in self.config.remembering else seen.expand(len(states), 1, -1, -1)
            states = layer(states, turns, attention_mask=mask, cache=cache)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(states), **{CACHE: cache})


class OwnModel(OwnPreTrained):
    def __init__(self, config):
        super().__init__(config)
        self.eyes = nn.Linear(3, TOKENS * WIDTH)
        self.decoder = OwnDecoder(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.decoder.embed_tokens

    def get_image_features(self, pixel_values):
        return self.eyes(pixel_values.mean((2, 3))).view(-1, TOKENS, WIDTH)

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, inputs_embeds=None,
                pixel_values=None, use_cache=None, **kwargs):  # fmt: skip
        states = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        if pixel_values is not None:
            features = self.get_image_features(pixel_values).flatten(0, 1).to(states.dtype)
            states = states.masked_scatter((input_ids == self.config.image_token_id)[..., None], features)
        return self.decoder(states, attention_mask, position_ids, cache, use_cache)


class OwnForConditionalGeneration(OwnPreTrained, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = OwnModel(config)
        self.lm_head = nn.Linear(WIDTH, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, inputs_embeds=None,
                pixel_values=None, use_cache=None, logits_to_keep=0, past_key_values=None, **kwargs):  # fmt: skip
        cache = past_key_values if cache is None else cache  # its name before transformers 5.24
        given = (input_ids, attention_mask, position_ids, cache, inputs_embeds, pixel_values, use_cache)
        out = self.model(*given)
        kept = out.last_hidden_state[:, -logits_to_keep:] if logits_to_keep else out.last_hidden_state
        return CausalLMOutputWithPast(logits=self.lm_head(kept), **{CACHE: out.get(CACHE)})

    def prepare_inputs_for_generation(self, input_ids, pixel_values=None, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        cache = kwargs.get(CACHE)
        first = cache is None or not cache.get_seq_length()
        return inputs | {"pixel_values": pixel_values if first else None}


def own_model(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = OwnForConditionalGeneration(OwnConfig(**options)).eval()
    model.generation_config.pad_token_id = PAD
    return model


def own_inputs(model, images=(1, 2), words=(5, 8)):
    """A left-padded batch, or one sample."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, text in zip(images, words, strict=True):
        ids = torch.randint(10, 100, (text,), generator=generator).tolist()
        start = [one for _ in range(number) for one in (ids.pop(), *[IMAGE] * TOKENS)]
        rows.append([1, *start, *ids])
    length = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[PAD] * (length - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        "pixel_values": torch.rand(sum(images), 3, 4, 4, generator=generator),
    }
