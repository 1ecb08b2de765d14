"""An engine of the real vLLM, and what it is compared with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import vlmprune
from vlmprune.serving.encoder import Encoder
from vlmprune.serving.options import engine_options

vllm = pytest.importorskip("vllm", reason="vLLM is not installed; .ci/vllm makes an environment that has it")

STEPS, TOLERANCE = 12, 1e-4
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the machine may be shared with other work
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


class Engine:
    """An engine and the same model here."""

    def __init__(self, folder: Path, model: Any, processor: Any, positions: str = "original", **options: Any) -> None:
        self.folder, self.model, self.processor, self.positions = folder, model, processor, positions
        self.worst = 0.0
        options = options or engine_options(folder, positions)
        self.llm = vllm.LLM(
            str(folder),
            dtype="float32",
            enforce_eager=True,
            max_model_len=512,
            max_num_seqs=8,
            block_size=32,
            enable_prefix_caching=True,
            **options,
        )

    def encoder(self, method: str = "divprune", **options: Any) -> Encoder:
        """Made of the folder: the language model is not read."""
        return Encoder(
            str(self.folder), method, processor=self.processor, positions=self.positions, **{"keep": 0.25, **options}
        )

    def answers(self, prompts: list[Any], ends: bool = False) -> list[tuple[list[int], list[dict[int, float]]]]:
        """Greedy tokens and the log-probabilities of the five likeliest at every step."""
        settings = vllm.SamplingParams(
            temperature=0, max_tokens=64 if ends else STEPS, ignore_eos=not ends, logprobs=5, detokenize=False
        )
        outputs = [out.outputs[0] for out in self.llm.generate(prompts, settings, use_tqdm=False)]
        return [
            (list(out.token_ids), [{token: one.logprob for token, one in step.items()} for step in out.logprobs])
            for out in outputs
        ]

    def expect(self, got: Any, inputs: Any, method: Any, **settings: Any) -> None:
        """The same tokens and log-probabilities from the wrapped model."""
        settings = settings or {"max_new_tokens": STEPS, "eos_token_id": None}
        with vlmprune.wrap(self.model, method, processor=self.processor):
            out = self.model.generate(
                **inputs, **settings, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        tokens, steps = got
        assert tokens == out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        for chosen, found, logits in zip(tokens, steps, out.logits, strict=True):
            ours = torch.log_softmax(logits[0].float(), dim=-1)
            off = {token: abs(value - float(ours[token])) for token, value in found.items()}
            self.worst = max(self.worst, off[chosen])
            # Tokens that were not chosen have larger logits to lose digits of: 1.01e-4 was seen at -2.88.
            assert off[chosen] <= TOLERANCE
            assert max(off.values()) <= 2 * TOLERANCE

    def stop(self) -> None:
        print(f"\n{self.folder.name}, {self.positions}: tokens' log-probabilities differ by at most {self.worst:.1e}")
        self.llm.llm_engine.engine_core.shutdown()
