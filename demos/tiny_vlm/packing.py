"""Many questions behind one picture: packed batches for training and for teacher-forced evaluation.

A row is `<bos>`, the visual tokens, and then every question with its answer, each seeing the picture and itself only
and each starting at the position it would have alone. So a packed row equals its questions asked one by one, and an
answer is what greedy decoding would give exactly if every one of its tokens (the end included) is the likeliest.

Shapes: B pictures, V visual tokens, T text tokens of a row, S = 1 + V + T.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmprune.tiny.scenes import GRID, Question
from vlmprune.tiny.vocabulary import words

IDS = {word: i for i, word in enumerate(words())}
_PIECES = re.compile(r"[a-z]+|\d|[^\sa-z\d]")
EARLY = 3  # words before the answer that should say how it begins
CAPTION_WEIGHT = 0.25  # of a caption's token against a short answer's: a caption has some sixty of them


def encode_text(text: str) -> list[int]:
    """As the pair's tokenizer does, without its overhead (a test compares the two)."""
    return [IDS.get(piece, IDS["<unk>"]) for piece in _PIECES.findall(text.lower())]


@dataclass
class Packed:
    """`ids` [B, T]; `positions` [B, S]; `mask` [B, 1, S, S] additive; loss at `where` (row, text column) with `target`
    and `weight`; `answers`: per question its family and the range of its entries in `where`; `early`: (row, text
    column, first token of the answer) of the question's last words, for `early_loss`."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    where: tuple[Tensor, Tensor]
    target: Tensor
    weight: Tensor
    answers: list[tuple[str, int, int]]
    early: tuple[Tensor, Tensor, Tensor]


def pack(rows: list[list[Question]], places: Tensor) -> Packed:
    """Pack each picture's questions behind its visual tokens at canvas patches `places` [B, V]."""
    batch, visual = places.shape

    def prompt_and_answer(q: Question) -> tuple[Question, list[int], list[int]]:
        return q, [*encode_text(q.text), IDS["<ans>"]], [*encode_text(q.answer), IDS["<eos>"]]

    texts = [[prompt_and_answer(q) for q in row] for row in rows]
    width = max(sum(len(a) + len(b) for _, a, b in row) for row in texts)
    ids = torch.full((batch, width), IDS["<pad>"])
    group = torch.full((batch, width), -1)
    positions = torch.zeros(batch, 1 + visual + width, dtype=torch.long)
    positions[:, 1 : 1 + visual] = places + 1
    row_at: list[int] = []
    col_at: list[int] = []
    target: list[int] = []
    weight: list[float] = []
    answers: list[tuple[str, int, int]] = []
    early: list[tuple[int, int, int]] = []
    for b, row in enumerate(texts):
        at = 0
        for number, (question, prompt, answer) in enumerate(row):
            whole = prompt + answer
            end = at + len(whole)
            ids[b, at:end] = torch.tensor(whole)
            group[b, at:end] = number
            first = 1 + GRID * GRID
            positions[b, 1 + visual + at : 1 + visual + end] = torch.arange(first, first + len(whole))
            answers.append((question.family, len(target), len(target) + len(answer)))
            start = at + len(prompt) - 1  # the row of <ans> predicts the first token of the answer
            row_at += [b] * len(answer)
            col_at += range(start, start + len(answer))
            target += answer
            if question.family != "caption":
                early += [(b, column, answer[0]) for column in range(max(at, start - EARLY), start)]
            weight += [CAPTION_WEIGHT if question.family == "caption" else 1.0] * len(answer)
            at = end
    size = 1 + visual + width
    seen = torch.ones(size, size, dtype=torch.bool).tril().expand(batch, -1, -1).clone()
    same = (group[:, :, None] == group[:, None, :]) & (group >= 0)[:, None, :]
    seen[:, 1 + visual :, 1 + visual :] &= same | torch.eye(width, dtype=torch.bool)
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    where = (torch.tensor(row_at), torch.tensor(col_at))
    places_of_early = torch.tensor(early).reshape(-1, 3).unbind(1)
    return Packed(ids, positions, mask, where, torch.tensor(target), torch.tensor(weight), answers, places_of_early)  # type: ignore[arg-type]  # three columns


def run(model: Any, features: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
    """Last hidden states of the text [B, T, D] and the projected picture [B, V, D]; `features` [B, V, tower width]."""
    lm = model.model.language_model
    visual = model.model.multi_modal_projector(features)
    start = lm.embed_tokens(torch.full((len(features), 1), IDS["<bos>"]))
    whole = torch.cat([start, visual, lm.embed_tokens(packed.ids)], dim=1)
    hidden = lm(
        inputs_embeds=whole, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    return hidden[:, 1 + features.shape[1] :], visual


def answer_logits(model: Any, features: Tensor, packed: Packed) -> Tensor:
    """Logits [answer tokens, vocabulary]; `features` [B, V, tower width]."""
    return model.lm_head(run(model, features, packed)[0][packed.where])


def early_loss(model: Any, text: Tensor, packed: Packed) -> Tensor:
    """The last words of a question should already say how its answer begins; `text` from `run`.

    Without it the token before the answer learns to look at all things in the picture at once, its attention
    saturates there and the question's noun, one step away, is never read: two things, and every second answer was the
    other one's for 4,000 steps. A noun that has to answer itself finds its own thing within minutes.
    """
    row, column, target = packed.early
    return F.cross_entropy(model.lm_head(text[row, column]), target)


def right_answers(logits: Tensor, packed: Packed) -> list[tuple[str, bool]]:
    """Per question its family and whether greedy decoding would give the answer exactly."""
    hit = logits.argmax(-1) == packed.target
    return [(family, bool(hit[a:b].all())) for family, a, b in packed.answers]


def drop_uniformly(rng: random.Random, visual: int, rate: float) -> Tensor:
    """Which of V visual tokens stay when every one is dropped at the same rate, whatever it shows: ascending."""
    keep = max(1, round(visual * (1 - rate)))
    return torch.tensor(sorted(rng.sample(range(visual), keep)))
