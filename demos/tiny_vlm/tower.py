"""Stage 1: the vision tower learns to name what every patch shows, background patches like object patches."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from .common import State, log
from .labels import patch_cover
from .scenes import Scene, make_scene, render
from .vocabulary import COLOURS, GRID, PATCH, SHAPES, SIZES, TEXTURES

WIDTH = 128
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)  # of the CLIP image processor
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)

CLASSES = {
    "shape": len(SHAPES) + 1,
    "colour": len(COLOURS) + 1,
    "size": len(SIZES) + 1,
    "digit": 11,
    "centre": 2,
    "texture": len(TEXTURES),
    "row": GRID,
    "column": GRID,
}
WEIGHT = {
    "shape": 1.0,
    "colour": 1.0,
    "size": 0.5,
    "digit": 2.0,
    "centre": 0.5,
    "texture": 0.2,
    "row": 0.15,
    "column": 0.15,
}
FREQUENCIES = (0.35, 0.8, 1.5, 2.4)
WAVES = 4 * len(FREQUENCIES)  # numbers of a position: a sine and a cosine for each, of the row and of the column


def tower_config() -> CLIPVisionConfig:
    """Four layers of width 128 on 14 x 14 patches."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=8,
        image_size=GRID * PATCH,
        patch_size=PATCH,
    )


def start(tower: nn.Module) -> Any:
    """Start weights of a tower, all but its positions, to which the first numbers of a patch are left.

    Returns:
        Its embeddings.
    """
    for name, p in tower.named_parameters():
        if p.ndim == 2 and "embedding" not in name:
            p.normal_(0, 1 / math.sqrt(p.shape[1]))
            if "out_proj" in name or "fc2" in name:
                p.mul_(0.35)
        elif name.endswith("bias"):
            p.zero_()
    embeddings: Any = next(m for m in tower.modules() if hasattr(m, "patch_embedding"))
    weight = embeddings.patch_embedding.weight
    weight.normal_(0, 1 / math.sqrt(weight[0].numel()))
    weight[:WAVES].zero_()
    embeddings.class_embedding.normal_(0, 0.5)
    return embeddings


def init_tower(model: CLIPVisionModel) -> None:
    """Start the first three layers as convolutions: head h looks at neighbour h, through sin-cos positions.

    A tower trained on some ten thousand images otherwise spends them on finding out which patches are adjacent;
    reading a digit needs 3 x 4 patches at once. The attention is free to change from there.
    """
    with torch.no_grad():
        embeddings = start(model)
        table = embeddings.position_embedding.weight
        table.normal_(0, 0.02)
        table[1:, :WAVES] = waves(GRID)
        offsets = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]
        for layer, reach in zip(encoder_layers(model)[:3], (1, 1, 2), strict=True):
            look_around(layer, [(dr * reach, dc * reach) for dr, dc in offsets])


def waves(side: int) -> Tensor:
    """Sines and cosines of a patch's row and column, [side * side, 16]."""
    place = torch.arange(side).float()
    one = torch.stack([g(f * place) for f in FREQUENCIES for g in (torch.cos, torch.sin)], 1)  # [side, 8]
    return torch.cat((one.repeat_interleave(side, 0), one.repeat(side, 1)), 1)


def look_around(layer: Any, offsets: Sequence[tuple[int, int]]) -> None:
    """Start an encoder layer as a convolution: head h, 16 wide, looks at the patch that many rows and columns away."""
    attention = layer.self_attn
    attention.q_proj.weight.mul_(0.2)
    attention.k_proj.weight.mul_(0.2)
    for head, offset in enumerate(offsets):
        q = attention.q_proj.weight[head * 16 : head * 16 + 16].zero_()
        k = attention.k_proj.weight[head * 16 : head * 16 + 16].zero_()
        k[:, :WAVES] = 2.2 * torch.eye(WAVES)
        for axis, steps in enumerate(offset):
            for i, f in enumerate(FREQUENCIES):
                # q = position turned by the offset, so that q . k peaks at (own place + offset).
                a, at = f * steps, 8 * axis + 2 * i
                turn = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
                q[at : at + 2, at : at + 2] = 2.2 * turn


def encoder_layers(model: CLIPVisionModel) -> Any:
    """The tower's encoder layers, wherever this version of transformers keeps them."""
    return next(m for n, m in model.named_modules() if n.endswith("encoder.layers"))


def window_places(windows: list[tuple[int, int, int, int]]) -> Tensor:
    """Canvas patch numbers (B, V) of windows of one size, row-major."""
    rows, cols = windows[0][2:]
    grid = torch.arange(rows)[:, None] * GRID + torch.arange(cols)[None]
    first = torch.tensor([r * GRID + c for r, c, _, _ in windows])
    return first[:, None] + grid.reshape(1, -1)


def pixels(images: list[np.ndarray]) -> Tensor:
    """(B, 3, height, width) as the image processor would give them."""
    stack = (np.stack(images).astype(np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous()


def encode(model: CLIPVisionModel, values: Tensor, places: Tensor) -> Tensor:
    """Tower features (B, 1 + V, D), class token first, of images that fill a window of the canvas.

    ``places`` (B, V) are canvas patch numbers. On a full canvas this equals the stock forward.
    """
    inner = getattr(model, "vision_model", model)
    embeddings = inner.embeddings
    patches = embeddings.patch_embedding(values).flatten(2).transpose(1, 2)
    table = embeddings.position_embedding.weight
    head = (embeddings.class_embedding + table[0]).expand(len(values), 1, -1)
    x = inner.pre_layrnorm(torch.cat((head, patches + table[places + 1]), 1))
    return inner.encoder(inputs_embeds=x).last_hidden_state


def random_windows(rng: random.Random, batch: int, full: float = 0.4) -> list[tuple[int, int, int, int]]:
    """One window size for the batch, 7 x 7 to 14 x 14 patches, each image at its own offset."""
    rows, cols = (GRID, GRID) if rng.random() < full else (rng.randint(7, GRID), rng.randint(7, GRID))
    return [(rng.randint(0, GRID - rows), rng.randint(0, GRID - cols), rows, cols) for _ in range(batch)]


def patch_labels(scene: Scene) -> dict[str, np.ndarray]:
    """What every patch (V) of the scene's window shows; class 0 of a thing's attribute = no thing."""
    row, col, rows, cols = scene.window
    owner = patch_cover(scene)[1].reshape(-1)
    things = scene.things
    shapes, colours, sizes = list(SHAPES), list(COLOURS), list(SIZES)

    def table(values: list[int]) -> np.ndarray:
        return np.array([*values, 0])[owner]  # owner -1 picks the last entry

    out = {
        "shape": table([shapes.index(t.shape) + 1 for t in things]),
        "colour": table([colours.index(t.colour) + 1 for t in things]),
        "size": table([sizes.index(t.size) + 1 for t in things]),
        "digit": table([0 if t.digit is None else t.digit + 1 for t in things]),
        "texture": np.full(rows * cols, TEXTURES.index(scene.texture)),
        "row": np.repeat(np.arange(row, row + rows), cols),
        "column": np.tile(np.arange(col, col + cols), rows),
        "centre": np.zeros(rows * cols, dtype=np.int64),
        "owner": owner,
    }
    for t in things:
        at = (int(t.cy) // PATCH - row) * cols + int(t.cx) // PATCH - col
        out["centre"][at] = 1
    offset = np.zeros((len(things) + 1, 2), dtype=np.float32)
    for i, t in enumerate(things):
        offset[i] = (t.cx, t.cy)
    here = np.stack((out["column"] + 0.5, out["row"] + 0.5), 1) * PATCH
    out["offset"] = np.where(owner[:, None] >= 0, (offset[owner] - here) / 16, 0).astype(np.float32)
    out["ground"] = np.tile(np.array(scene.background, dtype=np.float32) / 255, (rows * cols, 1))
    return out


class PatchNamer(nn.Module):
    """The tower with linear heads that exist only in this stage."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(tower_config())
        init_tower(self.tower)
        self.classes = nn.ModuleDict({k: nn.Linear(WIDTH, n) for k, n in CLASSES.items()})
        self.values = nn.ModuleDict({"offset": nn.Linear(WIDTH, 2), "ground": nn.Linear(WIDTH, 3)})
        self.summary = nn.Linear(WIDTH, len(SHAPES) + len(COLOURS))

    def forward(self, values: Tensor, places: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        x = encode(self.tower, values, places)
        out = {k: head(x[:, 1:]) for k, head in (*self.classes.items(), *self.values.items())}
        return out, self.summary(x[:, 0])


def tower_batch(
    seeds: range, rng: random.Random, split: str = "train", full: float = 0.4
) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    """Pixels, places, patch labels, and which shapes and colours occur, of one batch of scenes."""
    windows = random_windows(rng, len(seeds), full)
    scenes = [make_scene(s, split, window=w, digits=1.6) for s, w in zip(seeds, windows, strict=True)]
    every = [patch_labels(s) for s in scenes]
    labels = {k: torch.from_numpy(np.stack([e[k] for e in every])) for k in every[0]}
    present = torch.zeros(len(scenes), len(SHAPES) + len(COLOURS))
    for i, scene in enumerate(scenes):
        for t in scene.things:
            present[i, list(SHAPES).index(t.shape)] = 1
            present[i, len(SHAPES) + list(COLOURS).index(t.colour)] = 1
    return pixels([render(s) for s in scenes]), window_places(windows), labels, present


def tower_loss(out: dict[str, Tensor], summary: Tensor, labels: dict[str, Tensor], present: Tensor) -> Tensor:
    """Weighted sum over all heads; every patch counts, background patches as "no thing"."""
    loss = 0.3 * F.binary_cross_entropy_with_logits(summary, present)
    for name, count in CLASSES.items():
        target = labels[name].reshape(-1)
        # Attribute classes are rare against "no thing": weigh that one class down, keep every patch in.
        weight = torch.ones(count)
        if name in ("shape", "colour", "size", "digit", "centre"):
            weight[0] = {"digit": 0.08, "centre": 0.15}.get(name, 0.3)
        loss = loss + WEIGHT[name] * F.cross_entropy(out[name].reshape(-1, count), target, weight)
    owned = (labels["owner"] >= 0).float()[..., None]
    loss = loss + 1.0 * (owned * (out["offset"] - labels["offset"]).square()).sum() / owned.sum().clamp(min=1)
    return loss + 0.5 * F.mse_loss(out["ground"], labels["ground"])


@torch.no_grad()
def tower_accuracy(model: PatchNamer, scenes: int = 256) -> dict[str, float]:
    """Accuracy on object patches of full validation scenes (all patches for position, texture and centre)."""
    hits: dict[str, list[float]] = {}
    rng = random.Random(0)
    for at in range(0, scenes, 64):
        values, places, labels, _ = tower_batch(range(at, at + 64), rng, "validation", 1.0)
        out, _ = model(values, places)
        owned = labels["owner"] >= 0
        for name in CLASSES:
            right = (out[name].argmax(-1) == labels[name]).float()
            chosen = owned if name in ("shape", "colour", "size", "digit") else torch.ones_like(owned)
            if name == "digit":
                chosen = chosen & (labels["digit"] > 0)
            if name == "centre":
                chosen = labels["centre"] > 0
            hits.setdefault(name, []).append(float(right[chosen].mean()))
            if name in ("shape", "digit"):
                at_centre = chosen & (labels["centre"] > 0)
                hits.setdefault(name + "_at_centre", []).append(float(right[at_centre].mean()))
        hits.setdefault("offset_px", []).append(16 * float((out["offset"] - labels["offset"])[owned].abs().mean()))
    return {k: sum(v) / len(v) for k, v in hits.items()}


def train_tower(work: Path, minutes: float, lr: float = 1.5e-3, batch: int = 32, more: float = 0.0) -> None:
    """``more`` > 0 resumes a finished tower for that many minutes with a fresh warmup and decay."""
    folder = work / "tower"
    state = State(PatchNamer(), lr, folder, ema=0.998)
    state.load()
    start, budget = state.begin(minutes, more)
    while state.meta["seconds"] - start < budget:
        rng = random.Random(state.meta["step"])
        first = state.meta["images"]
        values, places, labels, present = tower_batch(range(first, first + batch), rng)
        out, summary = state.module(values, places)
        loss = tower_loss(out, summary, labels, present)
        loss.backward()
        rate = state.rate(budget, 150, 0.5, start)
        state.step(rate)
        state.meta["images"] += batch
        step = state.meta["step"]
        if step % 25 == 0:
            seen = {"seconds": state.meta["seconds"], "images": state.meta["images"]}
            log(folder, step=step, loss=float(loss.detach()), lr=rate, **seen)
        if step % 250 == 0:
            state.swap()
            log(folder, step=step, **tower_accuracy(state.module))  # type: ignore[arg-type]
            state.swap()
            state.save()
            state.pause()
    state.save()
    state.swap()
    log(folder, final=True, step=state.meta["step"], **tower_accuracy(state.module, 512))  # type: ignore[arg-type]
    finished = work / "tower.safetensors"
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in state.module.tower.state_dict().items()}, str(finished))  # type: ignore[union-attr]
