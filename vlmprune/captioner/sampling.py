"""Several samples of each prompt: every one has its own randomness, all of a prompt share its prefill.

Shapes: B prompts of a batch, k samples of each.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList
from transformers.generation.utils import MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL

from ..hf.compatibility import CACHE


def seed_of(*parts: object) -> int:
    """A seed that depends on all parts and on nothing else, the same on every machine."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8]) >> 1


class SeededSampler(LogitsProcessor):
    """Draws each row's next token itself, from the row's own generator, and leaves nothing else possible.

    One uniform number a step through the inverse of the cumulative distribution: what a row says does not depend on
    the rows beside it. Temperature 0 is greedy.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[rows, vocabulary] logits -> the same shape, 0 at the drawn token and -inf elsewhere."""
        if self.temperature == 0:
            token = scores.argmax(-1, keepdim=True)
        else:
            drawn = torch.tensor([torch.rand((), generator=g, dtype=torch.float64) for g in self.generators])
            cumulative = (scores.double() / max(self.temperature, 1e-6)).softmax(-1).cumsum(-1)
            # The last number may be a little under 1.
            wanted = drawn.to(cumulative.device)[:, None] * cumulative[:, -1:]
            token = torch.searchsorted(cumulative, wanted, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def drawn_from(seeds: Sequence[int], temperature: float) -> dict[str, Any]:
    """Options for `generate` under which a `SeededSampler` alone decides, whatever the model's own settings are."""
    return {
        # The sampler draws; "sampling" is what keeps beams and other greedy ways of a model's own away.
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "num_beams": 1,
        "return_dict_in_generate": False,
        "logits_processor": LogitsProcessorList([SeededSampler(seeds, temperature)]),
    }


class SharedPrefill:
    """The decoding loop for `generate(custom_generate=...)`: B prompts run once, their cache is then repeated k times.

    `generate(num_return_sequences=k)` repeats a prompt before it runs. Tokens are taken greedily from what the logits
    processors leave, so a `SeededSampler` of B * k rows, the k of a prompt side by side, must be among them.

    `shared` says after a call whether the prefill was: a cache that is not a `DynamicCache` (static, quantised, none)
    cannot be relied on to be repeated, and the prompts are then repeated before they run, with the same samples.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.shared = True

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor:
        """Prompt ids [B, S] -> sequences [B * k, S + new], rows that ended early filled up with the pad token."""
        self.shared = bool(model_kwargs["use_cache"]) and isinstance(model_kwargs.get(CACHE), DynamicCache)
        if not self.shared:
            ids, model_kwargs = self._repeated(model, input_ids, model_kwargs)
            generation_config.disable_compile = True  # the shared way compiles nothing either
            return model._sample(ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)
        outputs = model._prefill(input_ids, generation_config, model_kwargs)
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs, is_encoder_decoder=False)
        model_kwargs[CACHE].batch_repeat_interleave(self.samples)
        # Images are in the cache by now, and theirs is not a batch's axis in every family.
        for name in MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL:
            model_kwargs.pop(name, None)
        ids, model_kwargs = self._repeated(model, input_ids, model_kwargs)
        logits = outputs.logits[:, -1].repeat_interleave(self.samples, dim=0)
        pad, done = generation_config._pad_token_tensor, torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        while True:
            tokens = logits_processor(ids, logits.to(ids.device, torch.float32, copy=True)).argmax(dim=-1)
            if pad is not None:
                tokens = torch.where(done, pad.to(ids.device), tokens)
            ids = torch.cat([ids, tokens[:, None]], dim=1)
            done = done | stopping_criteria(ids, None)
            if bool(done.all()):
                return ids
            inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **model_kwargs)
            outputs = model(**inputs, return_dict=True)
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs, is_encoder_decoder=False)
            logits = outputs.logits[:, -1]

    def _repeated(self, model: Any, ids: Tensor, model_kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return model._expand_inputs_for_generation(expand_size=self.samples, input_ids=ids, **model_kwargs)
