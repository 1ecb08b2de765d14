"""Models of vLLM that prune images and videos themselves, before the language model.

The processor works out from the grid how many tokens of an image stay and writes so many placeholders; the model
chooses them when it has encoded the image. Both read what to do from a plan (`in_engine`) that travels with the image
and is part of the key of every cache. The hooks into vLLM are private ones, read in 0.32.
Shapes: V visual tokens of an image or video, K kept, N tokens of a step, R width of a row.
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
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    PlaceholderRange,
)
from vllm.multimodal.processing import PromptUpdateDetails

from ...errors import VlmpruneError
from ..in_engine import (
    KEY,
    METADATA,
    REQUEST,
    VIDEOS,
    EngineSettings,
    choose,
    family_of,
    layout_of,
    planned,
)
from ..payload import KEPT, VISUAL
from .positions import AXES, SPAN, PositionBuffer, positions_of_kept, with_distances
from .tower import EngineTower

PLAN = "vlmprune_plan"


def pruned_model(model: Any) -> Any:
    """A model of vLLM that prunes where its config has settings for it, and else is what it was."""
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
    bases = (PrunesMedia, model) if several else (PrunesMedia, model, SupportsMRoPE)
    members = {"several_axes": several}
    if hasattr(model, "get_encoder_cudagraph_config"):
        members["get_encoder_cudagraph_config"] = _no_tower_alone
    return register(type(f"Pruned{model.__name__}", bases, members))


def _no_tower_alone(self: Any) -> Any:
    """No graph of the vision tower alone: it would go past `embed_multimodal`."""
    config = super(PrunesMedia, self).get_encoder_cudagraph_config()
    return replace(config, modalities=[]) if self.prunes else config


class PrunesMedia:
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
        """Per image or video the rows that are left, with their places in more columns."""
        made: Any = super()
        if not self.prunes:
            return made.embed_multimodal(**kwargs)
        if PLAN not in kwargs:  # embeddings, or videos of a family where they stay whole
            return tuple(with_distances(rows.flatten(0, -2)) for rows in made.embed_multimodal(**kwargs))
        plans, _, spans = kwargs.pop(PLAN), kwargs.pop(VISUAL), kwargs.pop(SPAN, None)
        methods = [planned(bytes(plan.tolist()).decode()) for plan in plans]
        tower = None
        with ExitStack() as reading:
            if any(method.reads_vision for method in methods):
                tower = reading.enter_context(EngineTower(self))
            # Rows of a video may come as a batch of one.
            every = [rows.flatten(0, -2) for rows in made.embed_multimodal(**kwargs)]
        out, video = [], any("video" in name for name in kwargs)
        width, ours = self._whole.get_text_config().hidden_size, sorted(family_of(self._whole).visual_ids(self._whole))
        for number, (rows, method) in enumerate(zip(every, methods, strict=True)):
            given = {name: kwargs[name][number] for name in METADATA if name in kwargs}
            ids = torch.full((len(rows),), ours[0]) if spans is None else spans[number].cpu()
            visual = torch.isin(ids, torch.tensor(ours))
            vision = tower.seen(number, len(rows)) if tower and method.reads_vision else None
            layout = None if method.keeps_all else layout_of(self._whole, given, ids[visual], visual[visual], video)
            kept, stay = torch.arange(len(rows)), rows
            if layout is not None:
                kept, stay = choose(method, layout, rows, width, vision)
            if spans is not None:
                kept, stay = self._with_text(ids, visual, kept, stay)
            out.append(with_distances(stay, self._distances(ids, given, video)[:, kept]))
        return tuple(out)

    def _with_text(self, ids: Tensor, visual: Tensor, kept: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Kept rows [K, R] of a span of tokens [N] with those of its text: which tokens these are, and the rows."""
        model: Any = self
        stays = ~visual
        stays[visual.nonzero()[kept, 0]] = True
        text = ~visual[stays]
        out = rows.new_zeros(len(text), rows.shape[1])  # DeepStack adds nothing to text
        words = model.get_language_model().embed_input_ids(ids[~visual].to(rows.device))
        out[text.to(rows.device), : words.shape[1]] = words.to(rows.dtype)
        out[~text.to(rows.device)] = rows
        return stays.nonzero()[:, 0], out

    def _distances(self, ids: Tensor, given: Mapping[str, Any], video: bool) -> Tensor:
        """How far each of an image's or video's V tokens `ids` stands from the first: [3, V]."""
        if not self.several_axes:
            return torch.arange(len(ids)).expand(AXES, -1)
        fields = {
            name: MultiModalFieldElem(torch.as_tensor(one).cpu(), MultiModalBatchedField())
            for name, one in given.items()
        }
        place = PlaceholderRange(offset=0, length=len(ids))
        feature = MultiModalFeatureSpec(MultiModalKwargsItem(fields), "video" if video else "image", "", place)
        made: Any = super()
        positions: Tensor = made.get_mrope_input_positions(ids.tolist(), [feature])[0]
        return positions - positions[:, :1]

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
            raise VlmpruneError(
                f"Images and videos cannot be pruned inside vLLM together with {what}; switch one of them off."
            )
    readers = EngineSettings.read(config.model_config.hf_config).tower_readers()
    if readers and parallel.tensor_parallel_size > 1:
        raise VlmpruneError(
            f"Tensor parallelism spreads the vision tower's attention heads over GPUs, which {', '.join(readers)} "
            'would have to read; offer other methods only, such as "methods": ["divprune", "uniform"].'
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
        counts = inputs.mm_data_items.get_all_counts()
        if any(counts.get(kind, 0) for kind in self._kinds):
            given[PLAN] = self.settings.plan(asked)
        above: Any = super()
        made = above.apply(replace(inputs, hf_processor_mm_kwargs=given), timing_ctx)
        if PLAN in given and not planned(given[PLAN]).keeps_all:
            config = self.info.ctx.model_config.hf_config
            if made["prompt_token_ids"][-1] in family_of(config).visual_ids(config):
                raise VlmpruneError(
                    "The prompt ends with an image or a video, whose last token must not be pruned; put text behind "
                    "it or send keep=1.0."
                )
        return made

    @property
    def _kinds(self) -> tuple[str, ...]:
        """What is pruned."""
        return ("image", "video") if self.settings.model_type in VIDEOS else ("image",)

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
        if plan is None:
            return found
        pruned = {}
        for kind in self._kinds:
            items = out_mm_kwargs.get(kind, ())
            if len(items) and KEPT not in items[0]:
                pairs = zip(found[kind], items, strict=True)
                pruned[kind] = [self._pruned(updates, item, plan, kind == "video") for updates, item in pairs]
        return {**found, **pruned}

    def _pruned(self, updates: Sequence[Any], item: Any, plan: str, video: bool) -> list[Any]:
        """An image's or a video's updates with the placeholders that stay; its fields get what the model has to
        know."""
        config, method, out = self.info.ctx.model_config.hf_config, planned(plan), []
        fields: dict[str, Tensor] = {PLAN: torch.tensor(list(plan.encode()), dtype=torch.uint8)}
        for update in updates:
            mask, ids = _mask(update.content), torch.tensor(update.content.full)
            places = mask.nonzero()[:, 0]
            self.settings.check(method, len(places), "video" if video else "image")
            fields[VISUAL] = torch.tensor(len(places))
            left, between = torch.ones(len(mask), dtype=torch.bool), int(places[-1] - places[0]) >= len(places)
            if video and len(mask) > len(places):
                # How many tokens each frame keeps is known when the video is encoded, and until then only their sum.
                fields |= {VISUAL: torch.tensor(len(mask)), SPAN: torch.tensor(update.content.full)}
                layout = layout_of(config, item.get_data(), ids[places], mask[places], video)
                left[places[self.settings.count(method, layout.images[0]) :]] = False
                mask = torch.ones_like(mask)
            elif not method.keeps_all:
                if between:
                    raise VlmpruneError(
                        "The image's tokens have text between them (it is cut into tiles), so they cannot be pruned "
                        "inside vLLM; send keep=1.0, or switch the cutting off in mm_processor_kwargs."
                    )
                layout = layout_of(config, item.get_data(), ids[places], mask[places], video)
                left[places[self.settings.count(method, layout.images[0]) :]] = False
            out.append(update.with_content(_left(update.content, mask, left)))
        field = MultiModalBatchedField(keep_on_cpu=True)
        for name, value in fields.items():
            item[name] = MultiModalFieldElem(value, field)
        return out


@cache
def _pruning(base: Any) -> Any:
    return type(f"Pruning{base.__name__}", (PrunesPrompts, base), {})


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
