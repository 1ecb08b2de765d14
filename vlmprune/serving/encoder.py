"""From an image and a question to what an engine is handed: the prompt's ids and the kept visual tokens.

Two steps that may run side by side for different prompts: `rank_inputs` asks the guide, `encode_inputs` runs the tower
and chooses.
Shapes: B batch, S sequence, V visual tokens of a sample or an image, K kept, R width of a row (`tower`).
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig

from ..api import unwrap_peft
from ..errors import VlmpruneError
from ..flow.select import check_keep, count_for
from ..flow.transfer import transfer
from ..guide.inputs import end_ids, prompt_inputs
from ..guide.runner import guide_for
from ..guide.session import same_prompts
from ..hf.arguments import padding_mask
from ..inputs.chat import batched, build_messages
from ..inputs.placeholders import placeholders
from ..inputs.processor import load_processor
from ..methods.base import Method, Pruner
from ..methods.guided import Guided
from ..methods.registry import make_method
from ..methods.sgl import SGL
from .encoded import Encoded, KeptImage, Ranking
from .memory import Memory
from .payload import GRID, Bounds, check_rows
from .tower import Tower, load_vision, served_family

MAX_NEW_TOKENS = 64  # the guide's answer ranks too, so its length is part of the result; `ask` has the same default


class Encoder:
    """The large model's eyes and a pruner; its language model stays with the engine.

    Args:
        model: a directory or Hub id, of which only the vision tower and projector are read, or a loaded model.
        method: a pruner that looks at no layer of the language model ("sgl", "random", "uniform", "divprune",
            "visionzip"...), as an object or a name with `options`, `keep=0.25` for example. Tokens are dropped before
            the language model; `positions="compact"` is for stock vLLM, "original" (the default) for the plugin.
        guide: the small model of SGL: a directory, a Hub id, or loaded.
        processor, guide_processor: of loaded models; read from the directories else.
        load: options of `from_pretrained` for what is read here, `device_map` for example.
    Raises:
        UnsupportedModelError: an engine takes no embeddings of this family.
        VlmpruneError: a method that cannot run without the language model, or positions this family cannot have.
    """

    def __init__(
        self,
        model: Any,
        method: Pruner | str | type[Pruner] = "sgl",
        *,
        guide: Any = None,
        processor: Any = None,
        guide_processor: Any = None,
        load: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        load = {"dtype": "auto", **(load or {})}
        if isinstance(model, str | os.PathLike):
            folder = str(model)
            model = load_vision(folder, **load)
            self._generation = GenerationConfig.from_pretrained(folder)
            processor = load_processor(folder) if processor is None else processor
        else:
            model = unwrap_peft(model)
            self._generation = model.generation_config
        if isinstance(guide, str | os.PathLike):
            guide_processor = load_processor(str(guide)) if guide_processor is None else guide_processor
            guide = AutoModelForImageTextToText.from_pretrained(str(guide), **load).eval()
        if guide is not None:
            options |= {"guide": guide, "guide_processor": guide_processor}
        self.processor = processor
        self.method = before_the_model(make_method(method, **options))
        self.tower = Tower(model, self.method)
        self.positions = self.method.positions
        served_family(model.config, self.positions)
        self.exit_at: float | None = None
        self._guide: Any = None
        if isinstance(self.method, SGL):
            self.exit_at = self.method.exit_at
            self._guide = guide_for(self.method, model)
            self._ranker = copy.copy(self._guide)  # the same guide without the second look that only exits need
            self._ranker.check = False
            self._guide_processor = self.method.guide_processor or processor
            self._same = same_prompts(model, self._guide, processor)

    @property
    def rows_of_an_image(self) -> int | None:
        """How many rows every image must have, None where they may differ.

        Stock vLLM (0.32) ends its process where a step brings two LLaVA images with different numbers of rows; the
        plugin does not.
        """
        compact = self.positions == "compact"
        return count_for(self.method.keep, self.tower.image_tokens()) if compact else None

    @property
    def bounds(self) -> Bounds:
        """How large what a client encoded itself can be."""
        vision = self.tower.config.vision_config
        merge = getattr(vision, "spatial_merge_size", None)
        if merge is None:
            largest = self.tower.image_tokens()
        else:
            size = self._needed(self.processor).image_processor.size
            largest = max(1, size["longest_edge"] // (vision.patch_size * merge) ** 2)  # so many pixels are a token
        return Bounds(self.tower.row_width, largest, self.tower.longest, merge, self.rows_of_an_image)

    # -- one question ------------------------------------------------------------------------------------------

    def encode(self, image: Any, question: str, *, keep: float | int | None = None) -> dict[str, Any]:
        """The prompt that `vllm.LLM.generate` takes.

        Args:
            image: a PIL image, or a list of them. question: plain text; the chat template is applied.
            keep: instead of the method's.
        Raises:
            VlmpruneError: no processor, no image, an empty question, or a bad budget.
        """
        return self.encode_many([(image, question)], keep=keep)[0].prompt()

    def chat_part(self, image: Any, question: str, *, keep: float | int | None = None) -> dict[str, Any]:
        """The content part that stands for the image in a chat message to vLLM's OpenAI-compatible server; the question
        is to follow it in the same message. Several images: `encode_many(...)[0].parts()`.

        Raises:
            VlmpruneError: as `encode`.
        """
        if isinstance(image, list | tuple):
            raise VlmpruneError("chat_part() makes the part of one image; use encode_many(...)[0].parts() for several.")
        return self.encode_many([(image, question)], keep=keep)[0].parts()[0]

    def encode_many(self, asked: Sequence[tuple[Any, str]], *, keep: float | int | None = None) -> list[Encoded]:
        """A batch of (image or list of images, question): the guide and the tower see it at once.

        Raises:
            VlmpruneError: as `encode`.
        """
        talks = [build_messages(image, question) for image, question in asked]
        rankings = self.rank_inputs(self.inputs(talks, guide=True)) if self.guided else None
        return self.encode_inputs(self.inputs(talks), rankings, [keep] * len(talks))

    # -- the two steps -----------------------------------------------------------------------------------------

    @property
    def guided(self) -> bool:
        """Whether there is a guide to ask."""
        return self._guide is not None

    @property
    def same_tokens(self) -> bool:
        """Whether a token of the guide is one of the model."""
        return self.guided and bool(self._same)

    def inputs(self, talks: Sequence[Any], *, guide: bool = False) -> Any:
        """What the model's or the guide's processor makes of conversations; their images are not needed any more.

        Raises:
            VlmpruneError: there is no processor.
        """
        return batched(self._needed(self._guide_processor if guide else self.processor), list(talks))

    def _needed(self, processor: Any) -> Any:
        if processor is None:
            raise VlmpruneError("The encoder needs the model's processor; pass Encoder(..., processor=processor).")
        return processor

    def rank_inputs(
        self, inputs: Mapping[str, Any], *, max_new_tokens: int = MAX_NEW_TOKENS, exits: bool = False
    ) -> list[Ranking]:
        """Ask the guide.

        Args:
            inputs: what `inputs(..., guide=True)` returned. exits: whether the guide's answers may be used, so that how
                sure it is has to be measured.
        """
        own = {"eos_token_id": self._generation.eos_token_id, "pad_token_id": self._generation.pad_token_id}
        settings = {name: value for name, value in own.items() if self._same and value is not None}
        settings["max_new_tokens"] = max_new_tokens
        found = (self._guide if exits else self._ranker).answer(prompt_inputs(dict(inputs)), settings, whole=exits)
        ends = end_ids(settings.get("eos_token_id", self._guide.model.generation_config.eos_token_id))
        lengths = padding_mask(inputs.get("attention_mask"), inputs["input_ids"]).sum(dim=1).tolist()
        assert found.answers is not None
        sure = found.exit_score or [None] * len(found.answers)
        decode = getattr(self._guide_processor, "decode", None)
        return [
            Ranking(
                importance.cpu(),
                layout,
                decode(answer, skip_special_tokens=True).strip() if decode else "",
                len(answer),
                length,
                bool(len(answer)) and int(answer[-1]) in ends,
                certainty,
            )
            for importance, layout, answer, length, certainty in zip(
                found.importance, found.layouts, found.answers, lengths, sure, strict=True
            )
        ]

    def check_texts(self, texts: Sequence[str], visual: int) -> None:
        """Refuse a conversation that is too long, by its texts alone and the visual tokens of images seen before."""
        tokenizer = self._needed(self.processor).tokenizer
        self._check_length(visual + sum(map(len, tokenizer(list(texts), add_special_tokens=False)["input_ids"])))

    def _check_length(self, length: int) -> None:
        """Kept tokens at original positions reach as far as the unpruned prompt."""
        if self.positions == "original" and length >= self.tower.longest:
            raise VlmpruneError(
                f"The prompt has {length} tokens before pruning, and the model's positions end at "
                f"{self.tower.longest}; shorten it or send fewer images."
            )

    @property
    def image_tokens(self) -> frozenset[str]:
        """What marks an image or a video in the prompts of model and guide."""
        both = (self.processor, self._guide_processor if self.guided else None)
        return frozenset().union(*(placeholders(one) for one in both if one is not None))

    @torch.no_grad()
    def encode_inputs(
        self,
        inputs: Mapping[str, Any],
        rankings: Sequence[Ranking] | None = None,
        keeps: Sequence[float | int | None] | None = None,
        memory: Memory | None = None,
    ) -> list[Encoded]:
        """Run the tower and choose.

        Args:
            inputs: what `inputs` or the model's processor returned. rankings: one per prompt, of a guided method.
            keeps: one per prompt, None for the method's. memory: as `Tower.see`.
        """
        layouts = self.tower.layouts(inputs)
        importance = None
        if rankings is not None:
            importance = transfer([one.importance for one in rankings], [one.layout for one in rankings], layouts)
        keeps = keeps or [None] * len(layouts)
        budgets = [self.method.keep if keep is None else check_keep(keep) for keep in keeps]
        valid = padding_mask(inputs.get("attention_mask"), inputs["input_ids"])
        self._check_length(int(valid.sum(dim=1).max()))
        features, context = self.tower.see(inputs, layouts, importance, memory)
        # A selection of the batch for every distinct budget, and each prompt takes its row; 1 is one token, 1.0 all.
        select = lru_cache(None, typed=True)(lambda keep: replace(self.method, keep=keep).select(context))
        grids = inputs.get(GRID)
        left = iter(grids) if isinstance(grids, Tensor) else None
        out = []
        for row, (layout, keep) in enumerate(zip(layouts, budgets, strict=True)):
            selection = select(keep)
            kept = selection.kept[row].cpu()
            rows = features[row][kept.to(features[row].device)]
            if selection.merged is not None:  # DeepStack's levels are those of the tokens that stand for the merged
                rows = torch.cat([selection.merged[row].to(rows.dtype), rows[:, self.tower.width :]], dim=-1)
            rows = check_rows(rows.cpu(), self.tower.row_width)
            images, ids = [], valid[row].clone()  # every run of placeholders becomes one: the engine expands it again
            for span in layout.images:
                ids[layout.slots[span.positions[1:]].to(ids.device)] = False
                inside = torch.isin(kept, span.positions)
                own = kept[inside] - int(span.positions[0])
                images.append(KeptImage(rows[inside], own, span.count, next(left) if left else None))
            out.append(Encoded(inputs["input_ids"][row][ids].tolist(), tuple(images), self.positions))
        return out


def before_the_model(method: Method) -> Pruner:
    """The pruner with its layer set to 0.

    Raises:
        VlmpruneError: it is no pruner, or needs a layer of the language model.
    """
    reads = isinstance(method, Pruner) and (method.reads_attention or method.reads_keys or method.reads_text)
    needs_model = isinstance(method, Guided) and not isinstance(method, SGL)
    if not isinstance(method, Pruner) or reads or needs_model:
        raise VlmpruneError(
            f"The method {method.title!r} works inside the language model, which the engine runs; use one that ranks "
            "before it, such as 'sgl', 'uniform' or 'divprune'."
        )
    if method.layer not in (None, 0):
        raise VlmpruneError(
            f"layer={method.layer!r} lies inside the language model, which the engine runs; leave it out or use 0."
        )
    return replace(method, layer=0)
