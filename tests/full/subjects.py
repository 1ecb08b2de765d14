"""The tiny model of a type, its prompts, and what attends to what in it, for the probes of the support matrix.

Attention is read off the outputs of an eager model's own modules, so nothing here knows an adapter. Shapes: B batch,
S prompt, V visual tokens of a sample, H heads, R rows, T keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tests.support import tiny_families
from tests.support.generic import IMAGE, build_generic, make_generic_inputs
from tests.support.masked_generate import dropped_of, masked_forced_logits
from tests.support.reference import language_model, masked_logits, visual_slots
from vlmprune.families.generic import decoder_of

Inputs = dict[str, Tensor]
# Images and words of each prompt of the declared families; the generic ones' are made of their ragged batch.
PROMPTS = {"one": ((1, 8),), "pair": ((1, 6), (1, 9)), "ragged": ((1, 6), (2, 10))}


class Subject:
    """A model type, built tiny as its tests build it."""

    def __init__(self, model_type: str) -> None:
        self.model_type, self.declared = model_type, model_type in tiny_families.FAMILIES
        self._models: dict[tuple[str, int], Any] = {}

    def model(self, attn: str = "sdpa", seed: int = 0) -> Any:
        """Built once; the same seed gives the same weights whatever `attn` is."""
        if (attn, seed) not in self._models:
            build = tiny_families.build if self.declared else build_generic
            self._models[attn, seed] = build(self.model_type, attn=attn, seed=seed)
        return self._models[attn, seed]

    def inputs(self, kind: str = "ragged") -> Inputs:
        """One prompt alone, a "pair" of left-padded ones with an image each, or a "ragged" batch of one and two."""
        if self.declared:
            images, words = zip(*PROMPTS[kind], strict=True)
            return dict(tiny_families.make_inputs(self.model(), text_lengths=words, images=images))
        inputs = dict(make_generic_inputs(self.model()))
        return inputs if kind == "ragged" else with_one_image(inputs, pair=kind == "pair")

    @property
    def cross(self) -> bool:
        """Whether the image is seen in cross-attention layers."""
        return self.model_type == "mllama"

    def layers(self, model: Any) -> Sequence[nn.Module]:
        return language_model(model).layers if self.declared else decoder_of(model).layers  # type: ignore[return-value]  # a ModuleList

    @cached_property
    def depth(self) -> int:
        return len(self.layers(self.model()))

    def slots(self, inputs: Inputs) -> list[Tensor]:
        """Per sample [V]: positions of its visual tokens, for cross attention columns among the image's keys."""
        if self.declared:
            return visual_slots(self.model(), inputs)
        return [(row == IMAGE).nonzero()[:, 0] for row in inputs["input_ids"]]

    def image_ids(self, inputs: Inputs) -> Tensor:
        """Bool [B, S]: where an image stands in the text."""
        return inputs["input_ids"] == (self.model().config.image_token_id if self.declared else IMAGE)

    def masked(self, inputs: Inputs, kept: Sequence[Tensor], layer: int, tokens: Tensor) -> Tensor:
        """The plain model's logits [B, steps, vocabulary] of forced tokens, what is not kept hidden from `layer` on."""
        model = self.model()
        if self.cross:
            return masked_logits(model, inputs, kept, layer, tokens.shape[1], tokens)
        visual = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        for row, slots in zip(visual, self.slots(inputs), strict=True):
            row[slots] = True
        return masked_forced_logits(model, self.layers(model), inputs, dropped_of(visual, kept), layer, tokens)

    def maps(self, inputs: Inputs, steps: int = 1, seed: int = 0) -> list[dict[int, Tensor]]:
        """A plain eager run: per forward, layer -> attention of its rows [B, H, R, T]."""
        model = self.model("eager", seed)
        # Asked for attention, Gemma 4 runs all rows of a prompt in all layers.
        options = {"do_sample": False, "output_attentions": True, "return_dict_in_generate": True}
        with weights_of(self.layers(model), "cross_attn" if self.cross else "") as seen:
            model.generate(**inputs, max_new_tokens=steps, **options)
        return seen

    def importance(self, inputs: Inputs, steps: int, seed: int = 0) -> list[Tensor]:
        """Per sample [V]: attention from the text behind the image and from `steps` generated tokens but the last."""
        seen = self.maps(inputs, steps, seed)
        slots, images = self.slots(inputs), self.image_ids(inputs)
        totals = [torch.zeros(len(own)) for own in slots]
        length = images.shape[1]
        for step, layers in enumerate(seen):
            for weights in layers.values():
                first = 0 if self.cross else length + step - weights.shape[3]  # a window's cache has the last keys only
                for b, own in enumerate(slots):
                    start = int(images[b].nonzero()[-1]) + 1 if step == 0 else 0
                    received = weights[b, :, start:].float().sum(dim=(0, 1))
                    there = own >= first
                    totals[b][there] += received[own[there] - first]
        return totals


def with_one_image(ragged: Inputs, *, pair: bool) -> Inputs:
    """The first prompt of a batch alone, or beside itself with three words more behind its first token."""
    real = ragged["attention_mask"][0].bool()
    images = len(ragged["pixel_values"])

    def taken(name: str, value: Tensor) -> Tensor:
        if value.shape[-1] != len(real):  # of the images
            return value[[0, 0] if pair else [0]] if len(value) == images else value
        row = value[..., 0, real]
        if not pair:
            return row[..., None, :]
        words = row.new_tensor([20, 21, 22]) if name == "input_ids" else row[..., 1:2].repeat_interleave(3, dim=-1)
        longer = torch.cat([row[..., :1], words, row[..., 1:]], dim=-1)
        return torch.stack([nn.functional.pad(row, (3, 0)), longer], dim=-2)

    return {name: taken(name, value) for name, value in ragged.items()}


@contextmanager
def weights_of(layers: Sequence[nn.Module], only: str = "") -> Iterator[list[dict[int, Tensor]]]:
    """Within the block, the attention that the modules of each layer return: per forward, layer -> [B, H, R, T].

    Args:
        only: the name of the module in its layer, any if empty.
    """
    seen: list[dict[int, Tensor]] = []

    def begin(module: nn.Module, args: Any) -> None:
        seen.append({})

    def note(i: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor) and output[1].dim() == 4:
                seen[-1][i] = output[1].detach()

        return hook

    with ExitStack() as hooks, torch.no_grad():
        hooks.callback(layers[0].register_forward_pre_hook(begin).remove)
        for i, layer in enumerate(layers):
            for name, part in layer.named_modules():
                if name and (not only or name == only):
                    hooks.callback(part.register_forward_hook(note(i)).remove)
        yield seen
