"""Models in the form that vLLM reads, and what an engine's answers are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file


def save_for_engine(model: Any, folder: Path, processor: Any = None) -> Path:
    """A model's folder as vLLM 0.32 reads it: its CLIP tower has the names of older checkpoints."""
    model.save_pretrained(folder)
    if model.config.model_type == "llava":
        weights = load_file(folder / "model.safetensors")
        renamed = {_older(name): value for name, value in weights.items()}
        save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    if processor is not None:
        processor.save_pretrained(folder)
    return folder


def _older(name: str) -> str:
    return name.replace("vision_tower.", "vision_tower.vision_model.") if "vision_model" not in name else name
