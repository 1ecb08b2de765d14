"""Pruning inside the engine: what the operator sets, what a request may ask for, and which tokens of an image stay.

vLLM is not imported here; `plugin.pruned` calls this from its processor and its model.
Shapes: V visual tokens of an image, K kept, D width of the language model, R width of a row (`tower`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedModelError, VlmpruneError, nearest
from ..families import FAMILIES, Family, Media
from ..flow.locate import ImageSpan, SampleLayout, dealt, plain_grid
from ..flow.prompt_state import VisionStats
from ..flow.select import check_keep, count_for, evenly
from ..methods.base import Pruner, PruningContext
from ..methods.registry import list_methods, make_method
from .encoder import before_the_model
from .options import IN_ENGINE

KEY = "vlmprune"  # in the model's config: `--hf-overrides '{"vlmprune": {"keep": 0.25}}'`
REQUEST = ("keep", "method")  # in a request's mm_processor_kwargs
READABLE = ("llava",)  # families whose tower's attention is read in the engine
VIDEOS = ("qwen2_5_vl", "qwen3_vl", "llava_onevision")  # families whose videos are pruned too
# What a processor returns about an image or a video that its grid follows from.
METADATA = ("image_grid_thw", "image_sizes", "video_grid_thw", "second_per_grid_ts")


@dataclass(frozen=True)
class EngineSettings:
    """What a server does with images unless a request asks for something else, and how far a request may go.

    `methods`: names that a request may ask for, None for every method that can run here. `min_keep`, `max_keep`:
    budgets in the form of `keep`, compared as counts of tokens of the image.
    """

    model_type: str
    method: Pruner
    min_keep: float | int = 1
    max_keep: float | int = 1.0
    methods: tuple[str, ...] | None = None

    @staticmethod
    def read(config: Any) -> "EngineSettings":
        """The settings in a model's config.

        Raises:
            UnsupportedModelError: a family that is not pruned in the engine. VlmpruneError: an option that does not
                exist or is out of range.
        """
        given = getattr(config, KEY)
        if config.model_type not in IN_ENGINE:
            raise UnsupportedModelError(
                f"Models of type {config.model_type!r} are not pruned inside vLLM; the types that are: "
                f"{', '.join(sorted(IN_ENGINE))}."
            )
        if not isinstance(given, Mapping):
            raise VlmpruneError(f'"{KEY}" must be an object such as {{"keep": 0.25}}, got {given!r:.60}.')
        known = ("keep", "method", "min_keep", "max_keep", "methods")
        for name in given:
            if name not in known:
                raise VlmpruneError(f"vlmprune has no option {name!r:.60} in an engine; {nearest(str(name), known)}")
        for name in ("min_keep", "max_keep"):
            check_keep(given.get(name, 1), name)
        methods = given.get("methods")
        if methods is not None and (
            not isinstance(methods, list | tuple) or not all(isinstance(one, str) for one in methods)
        ):
            raise VlmpruneError(f"methods must be a list of method names, got {methods!r:.60}.")
        least, most = given.get("min_keep", 1), given.get("max_keep", 1.0)
        method = engine_method(given.get("method", "divprune"), given.get("keep", 0.25), config.model_type)
        if methods is not None:
            for name in methods:
                engine_method(name, method.keep, config.model_type)
            methods = (*methods, method.name)
        return EngineSettings(config.model_type, method, least, most, methods)

    def plan(self, asked: Mapping[str, Any]) -> str:
        """A request's method as text, by which caches are keyed too.

        Args:
            asked: what the request gave of `REQUEST`.
        Raises:
            VlmpruneError: a method or a budget that does not exist, or is not offered.
        """
        method = self.method
        if asked.get("keep") is not None:
            method = replace(method, keep=check_keep(asked["keep"]))
        if asked.get("method") is not None:
            method = engine_method(asked["method"], method.keep, self.model_type)
            if self.methods is not None and method.name not in self.methods:
                raise VlmpruneError(
                    f"method={method.name!r} is not offered by this server; use {', '.join(sorted(set(self.methods)))}."
                )
        return json.dumps(method.describe(), sort_keys=True)

    def tower_readers(self) -> list[str]:
        """Names of the methods that a request may ask for here and that read the vision tower's attention."""
        readers = {self.method.name} if self.method.reads_vision else set()
        for name in list_methods() if self.methods is None else self.methods:
            try:
                readers |= {name} if engine_method(name, self.method.keep, self.model_type).reads_vision else set()
            except VlmpruneError:
                continue  # it cannot run in an engine
        return sorted(readers)

    def count(self, method: Pruner, span: ImageSpan) -> int:
        """How many tokens of an image or a video stay.

        Raises:
            VlmpruneError: the server allows no such number.
        """
        kept = method.kept_of(span)
        assert kept is not None, "checked by engine_method"
        self.check(method, span.count, span.kind)
        return kept

    def check(self, method: Pruner, count: int, kind: str) -> None:
        """Refuse a budget of so many tokens that the server does not allow.

        Raises:
            VlmpruneError: it is one.
        """
        least, most = count_for(self.min_keep, count), count_for(self.max_keep, count)
        asked = count_for(method.keep, count)
        if not least <= asked <= most:
            raise VlmpruneError(
                f"keep={method.keep!r:.60} is {asked} of the {kind}'s {count} tokens, and this server keeps "
                f"{least} to {most}; ask for a number between."
            )


def engine_method(asked: Any, keep: Any, model_type: str) -> Pruner:
    """The method that a name, or an object {"name": ..., options}, stands for.

    Raises:
        VlmpruneError: no such method or option, or it cannot run in the engine.
    """
    given: Any = {"name": asked} if isinstance(asked, str) else asked
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise VlmpruneError(
            f'method must be a name or an object such as {{"name": "random", "seed": 1}}, got {asked!r:.60}.'
        )
    options = {str(name): value for name, value in given.items() if name != "name"}
    for name in ("keep", "layer", "positions", "guide"):
        if name in options:
            raise VlmpruneError(f"The option {name!r} cannot be given with the method in an engine; leave it out.")
    method = before_the_model(make_method(given["name"], keep=keep, **options))
    title = f"The method {method.name!r}"
    if method.asks:
        raise VlmpruneError(
            f"{title} ranks by the question, but an engine encodes an image once for every question; use one that "
            "ranks by the image alone, such as 'divprune'."
        )
    if method.kept_of(dealt(torch.arange(16), [plain_grid(4, 4)]).images[0]) is None:
        raise VlmpruneError(
            f"{title} with these options decides by the image how many tokens stay, but an engine has to know before "
            "it encodes; use one that keeps as many as asked, such as 'divprune'."
        )
    if method.reads_vision and (model_type not in READABLE or method.vision_as_one):
        raise VlmpruneError(
            f"{title} reads the vision tower's attention, which cannot be had in an engine for {model_type!r}; use "
            "another one, such as 'divprune'."
        )
    return method


@lru_cache(maxsize=256)
def planned(plan: str) -> Pruner:
    """The method that `EngineSettings.plan` wrote."""
    options = json.loads(plan)
    method = make_method(options.pop("name"), **options)
    assert isinstance(method, Pruner)
    return method


def layout_of(config: Any, given: Mapping[str, Any], ids: Tensor, visual: Tensor, video: bool = False) -> SampleLayout:
    """One image or video by itself as a prompt's layout.

    Args:
        given: what a processor returned about it; of that the `METADATA`. ids: the [N] tokens of its part of an
            unpruned prompt. visual: bool [N], which of these are its own V.
    Raises:
        VlmpruneError: its grid has another number of tokens.
    """
    family, count = family_of(config), int(visual.sum())
    arguments: dict[str, Any] = {
        name: torch.as_tensor(given[name]).reshape(1, -1) for name in METADATA if name in given
    }
    arguments["feature_rows"] = [count]
    grids_of = family.video_grids if video and family.video_grids else family.grids
    layout = dealt(torch.arange(count), grids_of(config, Media(arguments, ids[None], visual[None])))
    if len(layout.images) != 1 or layout.images[0].count != count:
        raise VlmpruneError(
            f"The {'video' if video else 'image'} has {count} visual tokens, and its grid "
            f"{sum(span.count for span in layout.images)}; this version of vLLM lays it out in another way than "
            "transformers, so leave it unpruned (keep=1.0)."
        )
    return layout


def family_of(config: Any) -> Family:
    """The adapter of a model that is pruned in the engine; Qwen3.5's images and videos lie as Qwen2-VL's."""
    return FAMILIES.get(config.model_type, FAMILIES["qwen2_vl"])


@torch.no_grad()
def choose(
    method: Pruner, layout: SampleLayout, rows: Tensor, width: int, vision: VisionStats | None = None
) -> tuple[Tensor, Tensor]:
    """Which tokens of one image or video stay, and what stands there.

    Args:
        rows: [V, R]; the first `width` of R are the embedding, which methods see. vision: for methods that read the
            tower.
    Returns:
        [K] ascending indices on the CPU and [K, R], with the K of `method.kept_of`.
    """
    ids = torch.zeros(1, layout.count, dtype=torch.long)  # the question is not known here, so no text is
    selection = method.select(
        PruningContext(
            layouts=[layout],
            hidden=rows[None, :, :width],
            input_ids=ids,
            valid=torch.ones_like(ids, dtype=torch.bool),
            layer=0,
            vision=None if vision is None else [vision],
            unpruned=[layout],
        )
    )
    kept = selection.kept[0].cpu()
    stay = rows[kept.to(rows.device)]
    if selection.merged is not None:  # DeepStack's levels are those of the tokens that stand for the merged
        stay = torch.cat([selection.merged[0].to(rows.dtype), stay[:, width:]], dim=-1)
    number = method.kept_of(layout.images[0])
    assert number is not None, "checked by engine_method"
    if len(kept) == number:
        return kept, stay
    return _exactly(number, kept, stay, rows)


def _exactly(number: int, kept: Tensor, stay: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """As many tokens as the prompt has placeholders, where a user's method keeps others than it should: the engine
    would end otherwise. The last go, or evenly spread ones of the others come."""
    if len(kept) > number:
        return kept[:number], stay[:number]
    free = torch.ones(len(rows), dtype=torch.bool)
    free[kept] = False
    others = free.nonzero()[:, 0]
    more = others[evenly(number - len(kept), len(others))]
    together, order = torch.cat([kept, more]).sort()
    return together, torch.cat([stay, rows[more.to(rows.device)]])[order.to(rows.device)]
