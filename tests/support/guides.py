"""What a guide should find out, written from the paper with eager attention maps and plain loops.

Imports nothing of the package, so it can be wrong only in its own way. One sample at a time, without padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.reference import all_logits, language_model, masked_logits, visual_slots

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


@torch.no_grad()
def naive_halved_guide(model: PreTrainedModel, prompt: Prompt, steps: int, keep: int) -> Found:
    """`naive_guide` whose visual tokens, all but the `keep` most important so far, are masked from the middle of the
    layers that see them on; without its second look."""
    (slots,) = visual_slots(model, prompt)
    layers = list(language_model(model).layers)
    cross = [i for i, layer in enumerate(layers) if hasattr(layer, "cross_attn")]
    seeing = cross or list(range(len(layers)))
    cut = seeing[len(seeing) // 2]
    image = model.config.image_token_id
    first_text = int((prompt["input_ids"][0] == image).nonzero()[-1]) + 1
    maps: dict[int, Tensor] = {}

    def importance(kept: list[int], tokens: Tensor, watched: list[int]) -> Tensor:
        hooks = []
        for i in watched:
            module = layers[i].cross_attn if cross else layers[i].self_attn
            hooks.append(module.register_forward_hook(lambda m, a, out, i=i: maps.__setitem__(i, out[1][0].float())))
        all_logits(model, prompt, [kept], cut, tokens)
        for hook in hooks:
            hook.remove()
        total = torch.zeros(len(slots))
        for i in watched:
            for head in maps[i]:
                for row in range(first_text, head.shape[0]):
                    for v, slot in enumerate(slots.tolist()):
                        total[v] += head[row, slot] * (i < cut or v in kept)
        return total

    every, nothing = list(range(len(slots))), prompt["input_ids"][:, :0]
    so_far = importance(every, nothing, [i for i in seeing if i < cut])
    kept = sorted(sorted(every, key=lambda v: -float(so_far[v]))[:keep])
    logits = masked_logits(model, prompt, [kept], cut, steps)[0].float()
    answer = logits.argmax(-1)
    confidence = float(logits.log_softmax(-1).amax(-1).mean().exp())
    return Found(importance(kept, answer[None, :-1], seeing), answer, confidence, 0.0, 0.0)


def extended(prompt: Prompt, tokens: list[int]) -> Prompt:
    """The prompt with generated tokens behind it."""
    out = dict(prompt)
    more = torch.tensor([tokens], dtype=torch.long)
    out["input_ids"] = torch.cat([prompt["input_ids"], more], dim=1)
    out["attention_mask"] = torch.ones_like(out["input_ids"])
    if "mm_token_type_ids" in prompt:
        out["mm_token_type_ids"] = torch.cat([prompt["mm_token_type_ids"], torch.zeros_like(more)], dim=1)
    return out
