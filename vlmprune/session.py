"""The hooks of one wrapped model: they run the flow inside its forwards and write the record of what happened.

Everything is put on this one instance and taken off again by `detach`: native hooks on the model, its base model, its
language model, vision tower and decoder layers; two shadowed methods (`generate`, the base model's
`get_image_features`); and, for methods that read attention, the config of the probed layer.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .arguments import cache_in, encoded, has_image, host_copies, padding_mask, small
from .attention.masks import windows_of
from .attention.probe import ProbedLayer, clear_observers, observe
from .attention.tower import TowerReader
from .attention.watcher import Watcher
from .cache_state import is_filled, recall
from .decode import Decode
from .errors import VlmpruneError
from .families import Family, Media
from .fit import check_fit, read_layers
from .flops import model_cost
from .flow.locate import SampleLayout, layouts_from_mask
from .forward import CrossPrefill, Prefill
from .hook import Hook, shadow
from .loss import kept_labels, with_loss
from .methods.base import Method, Pruner
from .methods.combined import parts_of
from .record import prompt_report
from .report import Report
from .sinks.watcher import VisualSinkWatcher
from .turnstile import Turnstile


class Session:
    """A method made ready for a model, and put on it by `attach`.

    Whatever does not fit is said here, before anything on the model is touched.

    Raises:
        VlmpruneError: the method's layer does not exist in this model, or the method and family do not fit.
    """

    def __init__(self, model: Any, family: Family, method: Method, watchers: Sequence[Watcher] = ()) -> None:
        self.model, self.family, self.method, self.watchers = model, family, method, watchers
        self.base: Any = family.base(model)
        self.text: Any = family.language_model(model)
        self.pruner = next((part for part in parts_of(method) if isinstance(part, Pruner)), None)
        self.layers = self.pruner.stage_layers(len(self.text.layers)) if self.pruner else (0,)
        self.windows = windows_of(family.attentions(model), self.text.config)
        self.cost = model_cost(family, model)
        self.turnstile = Turnstile()
        self.report: Report | None = None
        self._local = threading.local()
        self._recomputed = WeakIdKeyDictionary()
        self._signatures = {module: inspect.signature(module.forward) for module in (self.model, self.base)}
        self._read: list[int] = []
        if self.pruner is not None:
            check_fit(self.pruner, family, len(self.layers))
            if self._prunes:
                self._read = read_layers(self.pruner, self.layers, self.seeing)
        self._sink_watcher = None
        if self._read and getattr(self.pruner, "exclude_sinks", False):
            self._sink_watcher = VisualSinkWatcher(family, model)
            self.watchers = [*watchers, self._sink_watcher]
        self._watched = [list(watcher.layers(self.seeing)) for watcher in self.watchers]
        probed = {i for layers in self._watched for i in layers}
        probed.update(self._read)
        self.tower: TowerReader | None = None
        if self.pruner and self._prunes and self.pruner.reads_vision:
            name = type(self.pruner).__name__
            self.tower = TowerReader(
                family.tower_attention(model), family.class_token(model), name, family.model_type
            )
        self._probed = {i: family.attention(self.text.layers[i]) for i in sorted(probed)}
        self._undo: list[Callable[[], None]] = []

    @property
    def seeing(self) -> list[int]:
        """The decoder layers whose attention sees visual tokens."""
        if self.family.cross_attention:
            return list(self.text.config.cross_attention_layers)
        return list(range(len(self.text.layers)))

    # -- on and off --------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Put hooks, shadows and the probe on the model."""
        model, base = self.model, self.base

        def pre(module: nn.Module, function: Callable[..., Any]) -> None:
            handle = module.register_forward_pre_hook(Hook(function), with_kwargs=True, prepend=True)
            self._undo.append(handle.remove)

        def post(module: nn.Module, function: Callable[..., Any], always: bool = False) -> None:
            handle = module.register_forward_hook(Hook(function), with_kwargs=True, always_call=always)
            self._undo.append(handle.remove)

        pre(model, self._enter_model)
        post(model, self._leave_model)
        pre(base, self._enter_base)
        post(base, self._leave_base, always=True)
        pre(self.text, self._enter_text)
        tower = self.family.vision_tower(model)
        pre(tower, self._enter_vision)
        post(tower, self._leave_vision)
        for i, layer in enumerate(self.text.layers):
            pre(layer, functools.partial(self._enter_layer, i))
            if self.family.deepstack:
                post(layer, functools.partial(self._leave_layer, i))
        self._undo.append(shadow(model, "generate", self._generate))
        if hasattr(base, "get_image_features"):
            self._undo.append(shadow(base, "get_image_features", self._image_features))
        for module in [*self._probed.values(), *([self.tower.module] if self.tower else [])]:
            self._undo.append(ProbedLayer(module).remove)

    def detach(self) -> None:
        """Take everything off again, in reverse order."""
        while self._undo:
            self._undo.pop()()
        self._clear()

    # -- state of this thread ----------------------------------------------------------------------------------

    def _get(self, name: str, default: Any = None) -> Any:
        return getattr(self._local, name, default)

    def _clear(self) -> None:
        self._local.active = None
        clear_observers(self._probed.values())

    def _arguments(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a forward of the model or its base was given, by name."""
        given = self._signatures[module].bind_partial(*args, **kwargs).arguments
        return {**given.pop("kwargs", {}), **given}

    def _now(self) -> float:
        device = next(self.text.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    # -- generate ----------------------------------------------------------------------------------------------

    @contextmanager
    def _asleep(self) -> Iterator[None]:
        """Within the block this thread's calls of the model run as if it were not wrapped."""
        self._local.asleep = True
        try:
            yield
        finally:
            self._local.asleep = False

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._get("asleep"):
            return original(*args, **kwargs)
        with self.turnstile.generating():
            ids = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs"))
            self._local.prompts, self._local.prompt_length = ids.shape if isinstance(ids, Tensor) else (None, None)
            self._local.vision = 0.0
            before, self.report = self.report, None
            start = self._now()
            try:
                out = original(*args, **kwargs)
            finally:
                self._local.prompts = self._local.prompt_length = None
                self._clear()
            if self.report is None:  # a later turn on a filled cache: the report of its prompt stands
                self.report = before
            else:
                spent = self.report.seconds
                spent["total"] = self._now() - start
                spent["decode"] = max(0.0, spent["total"] - sum(v for k, v in spent.items() if k != "total"))
            return out

    # -- vision ------------------------------------------------------------------------------------------------

    def _image_features(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._local.media = small(inspect.signature(original).bind_partial(*args, **kwargs).arguments)
        return original(*args, **kwargs)

    def _enter_vision(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._local.vision_start = self._now()
        if self.tower is not None:
            self.tower.begin()

    def _leave_vision(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._local.vision = self._get("vision", 0.0) + self._now() - self._get("vision_start", 0.0)
        if self.tower is not None:
            self.tower.end()

    # -- the whole model: labels -------------------------------------------------------------------------------

    def _enter_model(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Take `labels` out: a pruned prompt has fewer rows of logits, so the loss is computed on the kept ones."""
        self._local.labels = None
        if not self._prunes or not (args or kwargs.get("labels") is not None):
            return None
        bound = self._signatures[self.model].bind_partial(*args, **kwargs)
        labels = bound.arguments.pop("labels", None)
        if labels is None:
            return None
        self._local.labels = labels
        return bound.args, bound.kwargs

    def _leave_model(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        labels, self._local.labels = self._get("labels"), None
        if labels is None:
            return None
        prefill, self._local.last = self._get("last"), None
        if isinstance(prefill, Prefill) and prefill.chosen is not None and not self.family.cross_attention:
            labels = kept_labels(labels, prefill.chosen)
        return with_loss(module, output, labels, kwargs)

    # -- the base model: a forward begins and ends -------------------------------------------------------------

    def _enter_base(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if self._get("asleep"):
            return
        self.turnstile.enter()
        self._clear()
        self._local.given = None
        given = self._arguments(self.base, args, kwargs)
        cache = cache_in(given)
        if cache is not None and not hasattr(cache, "layers"):
            cache = None
        if self.pruner is not None and (given.get("pixel_values_videos") is not None or encoded(given, "video")):
            raise VlmpruneError("The prompt has a video, which cannot be pruned yet; ask about its frames as images.")
        state = recall(cache) if cache is not None else None
        if state is not None:
            self._refuse_later_image(given)
            self._local.active = Decode(state, self.text, self.windows, given.get("attention_mask"))
        elif cache is not None and is_filled(cache):
            self._refuse_later_image(given)
            self._local.active = "continued"
        ids = given.get("input_ids")
        if self._get("active") is None or self._get("prompts") is None:  # `generate` itself times its steps
            self._local.start, self._local.vision_before = self._now(), self._get("vision", 0.0)
        if self._get("active") is not None:
            for watcher in self.watchers:
                watcher.step(ids, cache)
            self._watch()
        else:
            for watcher in self.watchers:  # `given` is not set yet: what they run now is nobody's prompt
                watcher.begin(ids, None if ids is None else padding_mask(given.get("attention_mask"), ids))
        self._local.given = given

    def _watch(self) -> None:
        """Let the watchers see the attention calls of this forward."""
        for watcher, layers in zip(self.watchers, self._watched, strict=True):
            for i in layers:
                observe(self._probed[i], functools.partial(watcher.attention, i))

    def _refuse_later_image(self, given: dict[str, Any]) -> None:
        ids = given.get("input_ids")
        changes = self._prunes or self.watchers
        if changes and has_image(given) and ids is not None and bool(self._visual(ids).any()):
            raise VlmpruneError(
                "A new image in a later turn on a filled cache cannot be pruned yet; run the whole conversation as one "
                "prompt without a cache."
            )

    @property
    def _prunes(self) -> bool:
        return self.pruner is not None and not self.pruner.keeps_all

    def _visual(self, ids: Tensor) -> Tensor:
        return torch.isin(ids, torch.tensor(self.family.visual_ids(self.model.config), device=ids.device))

    def _enter_text(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """The vision stage is over and the decoder layers are next: locate the visual tokens of a new prompt."""
        if self._get("given") is None or self._get("active") is not None:
            return None
        prefill = self._locate(self._local.given)
        self._local.active = prefill
        for i in self._read if prefill.pruner is not None else ():
            observe(self._probed[i], prefill.observe)
        for watcher in self.watchers:
            watcher.prompt(prefill)
        self._watch()
        if prefill.pruner is not None and kwargs.get("deepstack_visual_embeds") is not None:
            kwargs = dict(kwargs)
            prefill.deepstack = (kwargs.pop("visual_pos_masks"), kwargs.pop("deepstack_visual_embeds"))
            return args, kwargs
        return None

    def _locate(self, given: dict[str, Any]) -> Prefill:
        ids = given.get("input_ids")
        if ids is None:
            if self._prunes:
                raise VlmpruneError(
                    "The prompt came as inputs_embeds without input_ids, so its visual tokens cannot be found; pass "
                    "input_ids with the image."
                )
            ids = torch.zeros(given["inputs_embeds"].shape[:2], dtype=torch.long)
        device = ids.device
        ids, valid = host_copies([ids, padding_mask(given.get("attention_mask"), ids)])
        layouts = self._layouts(given, ids, valid)
        pruner = self.pruner if self._prunes and any(layout.count for layout in layouts) else None
        layers = pruner.stage_layers(len(self.text.layers), layouts) if pruner else self.layers
        kind = CrossPrefill if self.family.cross_attention else Prefill
        importance = self._importance(layouts) if pruner else None
        prefill = kind(pruner, layers, self.family, self.text, self.windows, ids, valid, layouts, importance)
        prefill.device = device
        prefill.sink_watcher = self._sink_watcher
        prefill.prompt_length = min(self._get("prompt_length") or ids.shape[1], ids.shape[1])
        if pruner is not None and self.tower is not None:
            prefill.vision = self.tower.take(layouts, self._rows_per_image(given, len(ids)))
        return prefill

    def rank_by(self, importance: list[Tensor] | None) -> None:
        """What a guide made of the visual tokens of this thread's next prompt: per sample [V]."""
        self._local.importance = importance

    def _importance(self, layouts: list[SampleLayout]) -> list[Tensor] | None:
        """The guide's ranking, once a row (beams and return sequences repeat rows)."""
        given: list[Tensor] | None = self._get("importance")
        if given is None:
            return None
        repeats = len(layouts) // len(given)
        return [scores for scores in given for _ in range(repeats)]

    def _rows_per_image(self, given: dict[str, Any], rows: int) -> int:
        """How many rows (beams, return sequences) stand for one pass of the vision stage.

        `generate` of newer transformers encodes each prompt's images once and repeats the features; older ones (5.14)
        repeat the pixels, and every row is encoded.
        """
        prompts = self._get("prompts")
        return rows // prompts if prompts and encoded(given, "image") else 1

    def _layouts(self, given: dict[str, Any], ids: Tensor, valid: Tensor) -> list[SampleLayout]:
        nothing = [SampleLayout(torch.zeros(0, dtype=torch.long), ()) for _ in ids]
        if not has_image(given):
            return nothing
        arguments = {**self._get("media", {}), **small(given)}
        if self.family.cross_layouts is not None:
            return self.family.cross_layouts(self.model.config, Media(arguments))
        ids, valid = host_copies([ids, valid])
        visual = self._visual(ids) & valid
        if (length := self._get("prompt_length")) is not None:
            visual[:, length:] = False  # with use_cache=False a generated image token comes back as input: it is text
        repeats = self._rows_per_image(given, len(ids))
        grids = self.family.grids(self.model.config, Media(arguments, ids[::repeats], visual[::repeats]))
        once = layouts_from_mask(visual[::repeats], grids)
        slots = [row.nonzero()[:, 0] for row in visual]
        return [SampleLayout(own, once[i // repeats].images) for i, own in enumerate(slots)]

    def _leave_base(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._get("asleep"):
            return
        active = self._get("active")
        self._local.given = None
        self._clear()
        again = self._get("prompts") is not None and self.report is not None  # use_cache=False: a prompt every step
        if output is not None and isinstance(active, Prefill) and not again:
            self._local.last = active
            repeats = len(active.layouts) // (self._get("prompts") or len(active.layouts))
            self.report = prompt_report(active, self.method, self.cost, len(self.text.layers), repeats)
            self.report.notes += [note for watcher in self.watchers for note in watcher.notes()]
            self._finish(self.report)
            vision = self._get("vision", 0.0) - self._local.vision_before
            if self._get("vision", 0.0):
                self.report.seconds["vision"] = self._local.vision
            self.report.seconds["prefill"] = self._now() - self._local.start - vision
            if self._get("prompts") is None:
                self.report.seconds["total"] = sum(self.report.seconds.values())
                self._local.vision = 0.0
        elif output is not None and isinstance(active, Decode) and self.report and self._get("prompts") is None:
            spent = self.report.seconds
            spent["decode"] = spent.get("decode", 0.0) + self._now() - self._local.start
        if isinstance(active, Prefill | Decode):
            active.cache = None  # `last` outlives the forward, and must not keep a cache alive
        self.turnstile.leave()

    def _finish(self, report: Report) -> None:
        """Add to the report of a prompt what only a special session knows."""

    # -- decoder layers ----------------------------------------------------------------------------------------

    def _active(self, kwargs: dict[str, Any]) -> Any:
        """This thread's forward, or the one whose layer gradient checkpointing runs a second time."""
        active = self._get("active")
        if active is None and kwargs.get("position_embeddings") is not None:
            active = self._recomputed.get(kwargs["position_embeddings"][0])
        return active

    def _enter_layer(self, i: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        active = self._active(kwargs)
        changed = None
        if isinstance(active, Prefill | Decode):
            changed = active.enter(i, args, kwargs)
            if module.training and isinstance(active, Prefill):
                # Up to transformers 5.20 at least, hooks run inside of the checkpoint, the second time without the
                # thread's forward: before the layer they see its old arguments, after it the new ones.
                for seen in (kwargs, changed[1] if changed else kwargs):
                    self._recomputed[seen["position_embeddings"][0]] = active
            active.cache = cache_in(kwargs)
        if active is not None:
            for watcher in self.watchers:
                watcher.entering(i, (changed[0] if changed else args)[0])
        return changed

    def _leave_layer(self, i: int, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        active = self._active(kwargs)
        if isinstance(active, Prefill) and active.deepstack is not None and i < len(active.deepstack[1]):
            return active.add_deepstack(i, output)
        return None
