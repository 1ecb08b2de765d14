"""Models of vLLM that prune images themselves, before the language model.

The processor works out from the grid how many tokens of an image stay and writes so many placeholders; the model
chooses them when it has encoded the image. Both read what to do from a plan (`in_engine`) that travels with the image
and is part of the key of every cache. The hooks into vLLM are private ones, read in 0.32.
Shapes: V visual tokens of an image, K kept, N tokens of a step, R width of a row.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.interfaces import SupportsMRoPE, supports_mrope
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalBatchedField, MultiModalFieldElem
from vllm.multimodal.processing import PromptUpdateDetails

from ...errors import VlmpruneError
from ..in_engine import KEY, METADATA, REQUEST, EngineSettings, choose, layout_of, planned
from ..payload import KEPT, VISUAL
from .positions import PositionBuffer, distances_of, positions_of_kept, with_distances
from .tower import EngineTower

PLAN = "vlmprune_plan"


def pruned_model(model: Any) -> Any:
    """A model of vLLM that prunes images where its config has settings for it, and else is what it was."""
    own = model._processor_factory

    def processor(info: Any, dummy_inputs: Any, **options: Any) -> Any:
        made = own.processor(info, dummy_inputs, **options)
        config = info.ctx.model_config.hf_config
        if not hasattr(config, KEY):
            return made
        plain: Any = type(made)  # known only now: some models make processors of several classes
        pruning = object.__new__(_pruning(plain))
        vars(pruning).update(vars(made), settings=EngineSettings.read(config))
        return pruning

    register = MULTIMODAL_REGISTRY.register_processor(processor, info=own.info, dummy_inputs=own.dummy_inputs)
    several = supports_mrope(model)
    bases = (PrunesImages, model) if several else (PrunesImages, model, SupportsMRoPE)
    members = {"several_axes": several}
    if hasattr(model, "get_encoder_cudagraph_config"):
        members["get_encoder_cudagraph_config"] = _no_tower_alone
    return register(type(f"Pruned{model.__name__}", bases, members))


def _no_tower_alone(self: Any) -> Any:
    """No graph of the vision tower alone: it would go past `embed_multimodal`."""
    config = super(PrunesImages, self).get_encoder_cudagraph_config()
    return replace(config, modalities=[]) if self.prunes else config


class PrunesImages:
    """In front of a model class of vLLM."""

    several_axes: bool

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        made: Any = super()
        made.__init__(vllm_config=vllm_config, prefix=prefix)
        config, text = vllm_config.model_config.hf_config, vllm_config.model_config.hf_text_config
        self._whole, self.prunes = config, hasattr(config, KEY)
        if self.prunes:
            check_engine(vllm_config)
        longest = None if self.several_axes else int(text.max_position_embeddings) - 1
        self._buffer = PositionBuffer(vllm_config.scheduler_config.max_num_batched_tokens, longest)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """The positions of the unpruned prompt, and of these the columns of what is left."""
        plain: Any = super().get_mrope_input_positions if self.several_axes else _running_number  # type: ignore[misc]
        return positions_of_kept(input_tokens, mm_features, lambda tokens, whole: plain(tokens, whole)[0])

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Per image the rows that are left, with their places in more columns."""
        made: Any = super()
        if not self.prunes:
            return made.embed_multimodal(**kwargs)
        if PLAN not in kwargs:  # a video, or embeddings
            return tuple(with_distances(rows) for rows in made.embed_multimodal(**kwargs))
        plans, _ = kwargs.pop(PLAN), kwargs.pop(VISUAL)
        methods = [planned(bytes(plan.tolist()).decode()) for plan in plans]
        tower = None
        with ExitStack() as reading:
            if any(method.reads_vision for method in methods):
                tower = reading.enter_context(EngineTower(self))
            every = made.embed_multimodal(**kwargs)
        width, out = self._whole.get_text_config().hidden_size, []
        for number, (rows, method) in enumerate(zip(every, methods, strict=True)):
            image = {name: kwargs[name][number] for name in METADATA if name in kwargs}
            layout = layout_of(self._whole, image, len(rows))
            vision = tower.seen(number, len(rows)) if tower and method.reads_vision else None
            kept, stay = choose(method, layout, rows, width, vision)
            out.append(with_distances(stay, distances_of(kept, layout.images[0].grid, self.several_axes)))
        return tuple(out)

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """The model's own, of rows without the columns of their places."""
        if self.prunes and is_multimodal is not None:
            multimodal_embeddings = self._buffer.take(multimodal_embeddings or (), is_multimodal)
        made: Any = super()
        embedded: Tensor = made.embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model's own, at the positions that the tokens have among all of them."""
        if self.prunes or not self.several_axes:
            positions = self._buffer.add(positions)
        made: Any = super()
        return made.forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)


def _running_number(tokens: list[int], images: Any) -> tuple[Tensor, int]:
    return torch.arange(len(tokens)).expand(3, -1), 0


def check_engine(config: Any) -> None:
    """Refuse what runs the model in pieces that do not know of each other.

    Raises:
        VlmpruneError: one of these is asked for.
    """
    parallel, multimodal = config.parallel_config, config.model_config.get_multimodal_config()
    if set(REQUEST) & set(multimodal.mm_processor_kwargs or ()):
        raise VlmpruneError(
            "The server's keep and method go into --hf-overrides '{\"vlmprune\": {...}}', and only a request's into "
            "mm_processor_kwargs; move them."
        )
    for wrong, what in (
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism"),
        (config.speculative_config is not None, "speculative decoding"),
        (multimodal.is_multimodal_pruning_enabled(), "vLLM's own pruning of videos"),
    ):
        if wrong:
            raise VlmpruneError(f"Images cannot be pruned inside vLLM together with {what}; switch one of them off.")
    method = EngineSettings.read(config.model_config.hf_config).method
    if method.reads_vision and parallel.tensor_parallel_size > 1:
        raise VlmpruneError(
            f"The method {method.name!r} reads attention heads that tensor parallelism spreads over GPUs; use another "
            "one, such as 'divprune'."
        )


class PrunesPrompts:
    """In front of a processor class of vLLM."""

    settings: EngineSettings
    info: Any

    def get_dummy_inputs(self, *args: Any, **options: Any) -> Any:
        """What memory is measured with: images as large as a request may keep them, with text behind."""
        made: Any = super()
        inputs = made.get_dummy_inputs(*args, **options)
        return replace(inputs, prompt=[*inputs.prompt, 0], hf_processor_mm_kwargs={"keep": self.settings.max_keep})

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """The model's own, with a plan for the images, by which vLLM's hashes of them differ too."""
        given = dict(inputs.hf_processor_mm_kwargs)
        asked = {name: given.pop(name) for name in REQUEST if name in given}
        given.pop(PLAN, None)
        if inputs.mm_data_items.get_all_counts().get("image", 0):
            given[PLAN] = self.settings.plan(asked)
        above: Any = super()
        made = above.apply(replace(inputs, hf_processor_mm_kwargs=given), timing_ctx)
        if PLAN in given and not planned(given[PLAN]).keeps_all:
            check_end(made["mm_placeholders"]["image"], len(made["prompt_token_ids"]))
        return made

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        made: Any = super()
        return made._apply_hf_processor_main(mm_items, _without_plan(hf_kwargs))

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        made: Any = super()
        return made._get_mm_fields_config(hf_inputs, _without_plan(hf_processor_mm_kwargs))

    def _get_mm_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Any:
        made: Any = super()
        plan = hf_processor_mm_kwargs.get(PLAN)
        found = made._get_mm_prompt_updates(mm_items, _without_plan(hf_processor_mm_kwargs), out_mm_kwargs)
        images = out_mm_kwargs.get("image", ())
        if plan is None or not len(images) or KEPT in images[0]:
            return found
        own = [self._pruned(updates, item, plan) for updates, item in zip(found["image"], images, strict=True)]
        return {**found, "image": own}

    def _pruned(self, updates: Sequence[Any], item: Any, plan: str) -> list[Any]:
        """An image's updates with the placeholders that stay; its fields get what the model has to know."""
        visual, out = 0, []
        for update in updates:
            mask = _mask(update.content)
            visual, first = int(mask.sum()), int(mask.int().argmax())
            if not planned(plan).keeps_all and not bool(mask[first : first + visual].all()):
                raise VlmpruneError(
                    "The image's tokens have text between them (it is cut into tiles), so they cannot be pruned "
                    "inside vLLM; send keep=1.0, or switch the cutting off in mm_processor_kwargs."
                )
            stay = visual
            if not planned(plan).keeps_all:
                layout = layout_of(self.info.ctx.model_config.hf_config, item.get_data(), visual)
                stay = self.settings.count(planned(plan), layout.images[0])
            left = torch.ones(len(mask), dtype=torch.bool)
            left[first + stay : first + visual] = False
            out.append(update.with_content(_left(update.content, mask, left)))
        field = MultiModalBatchedField(keep_on_cpu=True)
        item[PLAN] = MultiModalFieldElem(torch.tensor(list(plan.encode()), dtype=torch.uint8), field)
        item[VISUAL] = MultiModalFieldElem(torch.tensor(visual), field)
        return out


@cache
def _pruning(base: Any) -> Any:
    return type(f"Pruning{base.__name__}", (PrunesPrompts, base), {})


def check_end(images: Sequence[Any], tokens: int) -> None:
    """Refuse a prompt of so many tokens whose last one is an image's, since the next one is predicted from it."""
    for place in images:
        if place.offset + place.length == tokens and (place.is_embed is None or bool(place.is_embed[-1])):
            raise VlmpruneError(
                "The prompt ends with an image, whose last token must not be pruned; put text behind it or send "
                "keep=1.0."
            )


def _without_plan(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name != PLAN}


def _mask(content: Any) -> Tensor:
    """Which of an update's tokens are the image's."""
    if content.is_embed is None:
        return torch.ones(len(content.full), dtype=torch.bool)
    return torch.as_tensor(content.is_embed(content.full)).bool()


def _left(content: Any, mask: Tensor, left: Tensor) -> Any:
    """An update without some of its tokens."""
    full, inside = torch.tensor(content.full)[left].tolist(), mask[left]
    return PromptUpdateDetails(full, None if bool(inside.all()) else lambda _: inside)
