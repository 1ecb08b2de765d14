"""An adapter for lmms-eval (0.7, installed separately): `--model vlmprune --model_args method=fastv,keep=0.25`.

lmms-eval finds it through the entry point `lmms_eval.models` of this package; nothing here is imported without it.
"""

import os
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from ..api import wrap
from ..errors import VlmpruneError
from ..harness.models import load_models, make
from ..harness.parse import number
from ..inputs.placeholders import placeholders

IMAGE_MARK = "<image>"  # some tasks write it into their questions; the chat template places the images itself


def manifest() -> ModelManifest:
    """What the entry point hands to lmms-eval's registry."""
    return ModelManifest("vlmprune", simple_class_path=f"{__name__}.LmmsModel")


class LmmsModel(lmms):
    """A wrapped model that answers lmms-eval's requests one by one.

    Args:
        pretrained: a Hugging Face id or folder; the bundled pair without it. guide: the small model, for methods that
            need one. method, keep, layer: as on vlmprune's command line.
        batch_size, device: lmms-eval passes them; only a batch of one is answered, on the device the model is on.
    Raises:
        VlmpruneError: an unknown name, a bad value, several processes.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str | None = None,
        method: str = "none",
        keep: str | float | int | None = None,
        layer: str | float | int | None = None,
        guide: str | None = None,
        trust_remote_code: bool = False,
        batch_size: int | str = 1,
        device: str | None = None,
        **ignored: Any,
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise VlmpruneError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']} processes are not supported by this adapter; run one, or use "
                "python -m eval.run under torchrun."
            )
        models = load_models(pretrained, guide, trust_remote_code=trust_remote_code)
        given = {"keep": keep, "layer": layer}
        options = {name: number(str(value), name) for name, value in given.items() if value is not None}
        self.pruned = wrap(models.model, make(method, models, **options), processor=models.processor)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """One answer a request, cut at the first of its stop texts."""
        return [self._answer(*request.args) for request in requests]

    def _answer(self, context: str, options: dict[str, Any], images: Any, doc: Any, task: str, split: str) -> str:
        shown = images(self.task_dict[task][split][doc]) or []
        greedy = not options.get("temperature")
        generation: dict[str, Any] = {"do_sample": not greedy, "num_beams": options.get("num_beams") or 1}
        if not greedy:
            generation |= {name: options[name] for name in ("temperature", "top_p") if options.get(name) is not None}
        generation["max_new_tokens"] = options.get("max_new_tokens", 64)
        for mark in (IMAGE_MARK, *placeholders(self.pruned.processor)):
            context = context.replace(mark, " ")
        text = self.pruned.ask(list(shown), context.strip(), **generation).text
        until = options.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop)[0] if stop else text
        return text

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not supported: a new image in a later turn cannot be pruned yet."""
        raise VlmpruneError("Tasks of several rounds are not supported by vlmprune's adapter; leave them out.")

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not supported: pruned prompts are generated from, not scored."""
        raise VlmpruneError("Tasks scored by likelihood are not supported by vlmprune's adapter; leave them out.")
