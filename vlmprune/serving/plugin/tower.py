"""Attention of vLLM's own vision tower, for methods that rank by it. Shapes: N tokens of the tower, V visual tokens."""

from types import TracebackType
from typing import Any

from torch import Tensor

from ...attention.probe import AttentionCall
from ...attention.tower import image_stats
from ...flow.prompt_state import VisionStats


class EngineTower:
    """Reads, while it is entered, the attention of the tower's last layer; vLLM loads no layer behind the one whose
    output becomes visual tokens.

    Args:
        model: a LLaVA of vLLM, whose tower is CLIP's or SigLIP's.
    """

    def __init__(self, model: Any) -> None:
        vision = model.vision_tower.vision_model
        self._class_token = hasattr(vision.embeddings, "class_embedding")
        self._attention = vision.encoder.layers[-1].self_attn
        self._images: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> "EngineTower":
        self._hook = self._attention.qkv_proj.register_forward_hook(self._see)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hook.remove()

    def _see(self, module: Any, given: Any, output: tuple[Tensor, Any]) -> None:
        heads = self._attention.num_heads_per_partition
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in output[0].chunk(3, dim=-1))
        call = AttentionCall(query, key, value, None, {"scaling": self._attention.scale})
        self._images += image_stats(call, self._class_token)

    def seen(self, image: int, visual: int) -> VisionStats:
        """Of one image's V visual tokens; the class token in front is none, unless the model keeps it as one."""
        received, keys = self._images[image]
        return VisionStats(received[len(received) - visual :], keys[len(keys) - visual :])
