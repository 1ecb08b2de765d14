"""What a guide should find out, written from the paper with eager attention maps and plain loops.

Imports nothing of the package, so it can be wrong only in its own way. One sample at a time, without padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.reference import masked_logits, visual_slots

Prompt = dict[str, Tensor]


@dataclass
class Found:
    """`importance` [V], `answer` [n], and how sure the guide is."""

    importance: Tensor
    answer: Tensor
    confidence: float
    product: float
    mean: float


@torch.no_grad()
def naive_guide(model: PreTrainedModel, prompt: Prompt, steps: int, end: int | None = None) -> Found:
    """`model` must use eager attention. `end`: the end-of-sequence id."""
    (slots,) = visual_slots(model, prompt)
    ids, answer, probabilities = prompt["input_ids"], [], []
    length = ids.shape[1]
    for _ in range(steps):
        row = model(**extended(prompt, answer)).logits[0, -1].float().softmax(-1)
        answer.append(int(row.argmax()))
        probabilities.append(float(row.max()))
        if answer[-1] == end:
            break
    # The last generated token is never fed back, so it has no row.
    maps = model(**extended(prompt, answer[:-1]), output_attentions=True).attentions
    importance = torch.zeros(len(slots))
    first_text = int(slots.max()) + 1
    for layer in maps:
        for head in layer[0].float():
            for row in range(first_text, length + len(answer) - 1):
                for v, slot in enumerate(slots.tolist()):
                    importance[v] += head[row, slot]
    confidence = float(torch.tensor(probabilities).log().mean().exp())
    count = max(1, int(0.05 * len(slots) + 0.5))
    best = sorted(range(len(slots)), key=lambda v: (-float(importance[v]), v))[:count]
    tokens = torch.tensor([answer])
    logits = masked_logits(model, prompt, [sorted(best)], 0, len(answer), tokens)[0]
    logs = torch.stack([logits[i].float().log_softmax(-1)[token] for i, token in enumerate(answer)])
    return Found(importance, tokens[0], confidence, float(logs.sum().exp()), float(logs.mean().exp()))


def extended(prompt: Prompt, tokens: list[int]) -> Prompt:
    """The prompt with generated tokens behind it."""
    out = dict(prompt)
    more = torch.tensor([tokens], dtype=torch.long)
    out["input_ids"] = torch.cat([prompt["input_ids"], more], dim=1)
    out["attention_mask"] = torch.ones_like(out["input_ids"])
    if "mm_token_type_ids" in prompt:
        out["mm_token_type_ids"] = torch.cat([prompt["mm_token_type_ids"], torch.zeros_like(more)], dim=1)
    return out
