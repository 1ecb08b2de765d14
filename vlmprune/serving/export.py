"""A model's folder as vLLM reads it, which knows the older names of some weights."""

from pathlib import Path
from typing import Any

from ..errors import VlmpruneError

# Types of which vLLM 0.32 reads the vision tower by the names of older checkpoints.
OLDER_NAMES = ("llava", "llava_next", "llava_onevision", "gemma3")


def save_for_vllm(model: Any, folder: str | Path, processor: Any = None) -> Path:
    """Write a loaded model, and its processor if there is one, so that vLLM can load the folder.

    Args:
        folder: is made; its files of these names are replaced.
    Raises:
        VlmpruneError: nothing can be written there.
    """
    from safetensors.torch import load_file, save_file

    folder = Path(folder)
    try:
        model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        if model.config.model_type in OLDER_NAMES:
            for file in folder.glob("*.safetensors"):
                save_file({_older(name): value for name, value in load_file(file).items()}, file, {"format": "pt"})
    except (OSError, AssertionError) as error:  # transformers asserts that its folder is no file
        raise VlmpruneError(f"The model cannot be written to {str(folder)!r} ({error}); name another folder.") from None
    return folder


def _older(name: str) -> str:
    return name.replace("vision_tower.", "vision_tower.vision_model.") if "vision_model" not in name else name
