"""The hooks of one wrapped model: they run the flow inside its forwards and write the record of what happened.

Everything is put on this one instance and taken off again by `detach`: native hooks on the model, its base model, its
language model, vision tower and decoder layers; shadowed methods (`generate`, the base model's `get_image_features`);
and, for methods that read attention, the config of the probed layer. Copies of the model leave all of it out (`hook`).
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

from ..accounting.build_report import carry, prompt_report
from ..accounting.flops import model_cost
from ..accounting.report import Report
from ..attention.observer import Watcher, check_watcher, edited
from ..attention.probe import ProbedLayer, clear_observers, observe
from ..attention.sink_observer import VisualSinkWatcher
from ..attention.tower import TowerReader
from ..errors import InactiveHandleError, VlmpruneError
from ..families import Family, Media
from ..flow.locate import SampleLayout, ending, last_valid, layouts_from_mask
from ..flow.prompt_state import PromptState, Rows
from ..flow.returned import checked_layers
from ..hf.arguments import cache_in, encoded, has_image, host_copies, padding_mask, refuse_video, small
from ..hf.cache_state import is_filled, note, noted, recall
from ..hf.hooks import Hook, conceal, refuse_replica, replica, shadow
from ..methods.base import Method, Pruner
from ..methods.combined import parts_of
from .call_lock import BASE, MODEL, turnstile_of
from .cross_prefill import CrossPrefill
from .decide import Decider
from .decode import Decode
from .deepstack import DeepStack
from .fit import check_backbone, check_fit, read_layers
from .output_rows import Asked, asked_for, labelled
from .pieces import RANKED, Ranked, check_later, refuse_part, run_whole, silent
from .prefill import Prefill


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
        check_backbone(self.text)
        self.pruner = next((part for part in parts_of(method) if isinstance(part, Pruner)), None)
        self.layers = self._stages() if self.pruner else (0,)
        self.cost = model_cost(family, model)
        self.windows = [layer.window for layer in self.cost.layers]
        self.turnstile = turnstile_of(model)
        self.replaced = False  # by another wrap of the model
        self._latest: Report | None = None
        self._local = threading.local()
        self._recomputed = WeakIdKeyDictionary()
        self._signatures = {module: inspect.signature(module.forward) for module in (self.model, self.base)}
        self._read: list[int] = []
        for watcher in watchers:
            check_watcher(watcher, self.seeing)
        if self.pruner is not None:
            check_fit(self.pruner, family, len(self.layers))
            if self._prunes:
                self._read = read_layers(self.pruner, self.layers, self.seeing)
        self._sink_watcher = None
        if self._read and self.pruner is not None and self.pruner.exclude_sinks:
            self._sink_watcher = VisualSinkWatcher(family, model)
            self.watchers = [*watchers, self._sink_watcher]
        self._watched = [list(watcher.layers(self.seeing)) for watcher in self.watchers]
        probed = {i for layers in self._watched for i in layers}
        probed.update(self._read)
        self.tower: TowerReader | None = None
        if self.pruner and self._prunes and self.pruner.reads_vision:
            name = type(self.pruner).__name__
            self.tower = TowerReader(family.tower_attention(model), family.class_token(model), name, family.model_type)
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
        """Put hooks, shadows and the probe on the model; the caller holds the turnstile where others may call it."""
        model, base = self.model, self.base

        def pre(module: nn.Module, function: Callable[..., Any]) -> None:
            self._undo.append(conceal(module))
            hook = Hook(self._awake(function))
            self._undo.append(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True).remove)

        def post(module: nn.Module, function: Callable[..., Any], always: bool = False) -> None:
            hook = Hook(self._awake(function))
            self._undo.append(module.register_forward_hook(hook, with_kwargs=True, always_call=always).remove)

        self.turnstile.sessions.append(self)
        self._undo.append(functools.partial(self.turnstile.sessions.remove, self))
        # Not hooks: PEFT and users call `model.forward`, which runs none.
        self._undo.append(conceal(model))
        self._undo.append(shadow(model, "forward", self._forward))
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
        self._undo.append(shadow(model, "generate", self._generate_apart))
        self._undo.append(shadow(model, "_replicate_for_data_parallel", replica))
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
    def asleep(self) -> Iterator[None]:
        """Within the block this thread's calls of the model run as if it were not wrapped."""
        before, self._local.asleep = self._get("asleep", False), True
        try:
            yield
        finally:
            self._local.asleep = before

    def _generate_apart(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`generate` as it is called: one within another, of a model that drafts for itself, leaves its state."""
        if not self._get("generating"):
            return self._generate(original, *args, **kwargs)
        outer = dict(vars(self._local))
        try:
            return self._generate(original, *args, **kwargs)
        finally:
            vars(self._local).clear()
            vars(self._local).update(outer)

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._get("asleep"):
            return original(*args, **kwargs)
        with self.turnstile.generating():
            if not self._undo:  # taken off while this call waited: ask whatever is on the model now
                return self.model.generate(*args, **kwargs)
            out, report = self._reported(original, args, kwargs)
            return self._publish(out, report)

    def _reported(self, original: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> tuple[Any, Report | None]:
        """What `generate` returns, and the report of its prompt: on a filled cache, of the prompt that filled it."""
        refuse_video(kwargs)
        ids = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs"))
        self._local.prompts, self._local.prompt_length = ids.shape if isinstance(ids, Tensor) else (None, None)
        self._local.vision = 0.0
        self._local.made = self._local.stands = None
        self._local.generating = self._local.begins = True
        whole = None
        if has_image(kwargs) and (self._prunes or self.watchers):
            whole = run_whole(self.model, kwargs, config=args[1] if len(args) > 1 else None)
        start = self._now()
        try:
            out = original(*args, **kwargs)
        finally:
            self._local.generating = False
            self._local.prompts = self._local.prompt_length = None
            self._local.media = {}
            self._clear()
        report: Report | None = self._get("made")
        if report is None:
            return out, self._get("stands")
        report.notes += [whole] if whole else []
        spent = report.seconds
        spent["total"] = self._now() - start
        spent["decode"] = max(0.0, spent["total"] - sum(v for k, v in spent.items() if k != "total"))
        return out, report

    # -- reports -----------------------------------------------------------------------------------------------

    @property
    def report(self) -> Report | None:
        """Of this thread's last call; in a thread that made none, of any thread's."""
        report: Report | None = self._get("report")
        return self._latest if report is None else report

    def _publish(self, out: Any, report: Report | None) -> Any:
        """The output of a call, which carries the call's report as `report`."""
        if report is not None:
            self._local.report = self._latest = report
            carry(out, report)
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

    # -- the whole model: one call at a time; labels, and which rows the caller wants --------------------------

    def _awake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A hook that does nothing where this thread is asleep, or where it belongs to a wrap that is gone."""

        def hook(module: nn.Module, *given: Any) -> Any:
            return None if self._get("asleep") or not self._undo else function(module, *given)

        return hook

    def _taken(self, module: nn.Module, level: int) -> bool:
        """Wait for this thread's turn; False where the wrap was taken off while it waited.

        Raises:
            VlmpruneError: the module is a replica of `DataParallel`, or another wrap took this one's place.
        """
        if getattr(module, "_is_replica", False):
            refuse_replica()
        self.turnstile.enter(level)
        if self._undo:
            return True
        self.turnstile.leave(level)
        if self.replaced:
            raise InactiveHandleError("The model was wrapped again while this call waited for it; call it again.")
        return False

    @torch.compiler.disable
    def _enter_call(self) -> bool:
        """Whether this call is ours to answer: False where the model is to run as if it were not wrapped."""
        return not self._get("asleep") and self._taken(self.model, MODEL)

    @torch.compiler.disable
    def _leave_call(self, output: Any) -> None:
        if output is not None and not self._get("generating"):
            self._publish(output, self._get("made") or self._get("stands"))
        self.turnstile.leave(MODEL)

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._enter_call():
            return original(*args, **kwargs)
        output = asked = None
        try:
            asked, args, kwargs = self._enter_model(args, kwargs)
            if asked is not None:
                self._local.asked = asked
            output = original(*args, **kwargs)
            if asked is not None:
                output = self._leave_model(asked, output)
            return output
        except (ValueError, RuntimeError) as error:
            self._explain(error, args, kwargs)
            raise
        finally:
            if asked is not None:
                self._local.asked = None
            self._leave_call(output)

    @torch.compiler.disable
    def _enter_model(self, args: Any, kwargs: dict[str, Any]) -> tuple[Asked | None, Any, dict[str, Any]]:
        """Take out what depends on the rows that a prompt will have: its labels, and which of its logits to keep."""
        given = self._arguments(self.model, args, kwargs)
        refuse_video(given)
        cache = cache_in(given)
        if hasattr(cache, "layers") and is_filled(cache):  # a step has all its rows
            return None, args, kwargs
        bound = self._signatures[self.model].bind_partial(*args, **kwargs)
        prunes = self._prunes and has_image(given)
        lines_up = self.model.training and not self._get("generating")
        changes_rows = prunes and not self.family.cross_attention
        asked = asked_for(bound, prunes=prunes, changes_rows=changes_rows, lined_up=lines_up)
        return asked, bound.args, bound.kwargs

    @torch.compiler.disable
    def _explain(self, error: Exception, args: Any, kwargs: dict[str, Any]) -> None:
        """Say it in our words where a prompt failed whose text and images do not add up: it may be a piece of one."""
        given = self._arguments(self.model, args, kwargs)
        ids = given.get("input_ids")
        if isinstance(error, VlmpruneError) or ids is None or not (self._prunes or self.watchers):
            return
        try:
            self._layouts(given, ids, padding_mask(given.get("attention_mask"), ids))
        except VlmpruneError as ours:
            raise ours from error

    @torch.compiler.disable
    def _leave_model(self, asked: Asked, output: Any) -> Any:
        return asked.finish(self.model, output)

    # -- the base model: a forward begins and ends -------------------------------------------------------------

    def _enter_base(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if not self._taken(module, BASE):
            return
        self._clear()
        self._local.given = None
        if not (inside := self._get("generating", False)):
            self._local.made = None
        given = self._arguments(self.base, args, kwargs)
        refuse_video(given)
        cache = cache_in(given)
        if cache is not None and not hasattr(cache, "layers"):
            cache = None
        self._local.stands = None if cache is None else noted(cache, "report")
        state = recall(cache) if cache is not None else None
        begins, self._local.begins = inside and self._get("begins", False), False
        if state is not None:
            self._refuse_later_image(given)
            came = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
            check_later(noted(cache, RANKED), came.shape[1], generating=inside, begins=begins)
            self._local.active = Decode(state, self.text, self.windows, given.get("attention_mask"))
        elif cache is not None and is_filled(cache):
            self._refuse_later_image(given)
            self._local.active = "continued"
        ids = given.get("input_ids")
        if self._get("active") is None or not inside:  # `generate` itself times its steps
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
                observe(self._probed[i], functools.partial(edited, watcher, i))

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
        state = self._locate(self._local.given)
        pruner = self.pruner if self._prunes and any(layout.count for layout in state.layouts) else None
        layers = self._stages(state.layouts) if pruner else self.layers
        decider = Decider(pruner, layers, state, self._sink_watcher) if pruner is not None else None
        changed, deepstack = None, None
        if decider is not None and kwargs.get("deepstack_visual_embeds") is not None:
            kwargs = dict(kwargs)
            deepstack = DeepStack(kwargs.pop("visual_pos_masks"), kwargs.pop("deepstack_visual_embeds"))
            changed = args, kwargs
        kind = CrossPrefill if self.family.cross_attention else Prefill
        self._local.active = kind(state, decider, self.family, self.text, self.windows, deepstack)
        if decider is not None:
            for i in self._read:
                observe(self._probed[i], decider.observe)
        for watcher in self.watchers:
            watcher.prompt(state)
        self._watch()
        return changed

    def _locate(self, given: dict[str, Any]) -> PromptState:
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
        if pruner is not None and pruner.asks:
            refuse_part(type(pruner).__name__, ids, given.get("attention_mask"))
        tower = self.tower if pruner is not None else None
        return PromptState(
            input_ids=ids,
            valid=valid,
            layouts=layouts,
            device=device,
            prompt_length=min(self._get("prompt_length") or ids.shape[1], ids.shape[1]),
            cross_attention=self.family.cross_attention,
            reindexed=pruner is not None and pruner.positions == "compact",
            importance=self._importance(layouts) if pruner else None,
            vision=tower.take(layouts, self._rows_per_image(given, len(ids))) if tower is not None else None,
        )

    def _stages(self, layouts: list[SampleLayout] | None = None) -> tuple[int, ...]:
        """The layers before which tokens are dropped: at wrap time, or of a prompt with these layouts.

        Raises:
            VlmpruneError: no layers, or others than those whose attention is read.
        """
        pruner, depth = self.pruner, len(self.text.layers)
        assert pruner is not None, "asked of pruners only"
        name = type(pruner).__name__
        if layouts is None:
            return checked_layers(pruner.stage_layers(depth), depth, name)
        layers = checked_layers(pruner.stage_layers(depth, layouts), depth, name)
        if self._read and layers != self.layers:
            raise VlmpruneError(
                f"{name}.stage_layers() returned {self.layers} when the model was wrapped, before which attention is "
                f"read, and {layers} for a prompt; return the same layers, whatever the prompt."
            )
        return layers

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
        layouts = [SampleLayout(own, once[i // repeats].images) for i, own in enumerate(slots)]
        last = last_valid(valid[:, :length]).tolist()
        return [ending(layout, at) for layout, at in zip(layouts, last, strict=True)]

    def _leave_base(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        active = self._get("active")
        self._local.given = None
        self._clear()
        inside = self._get("generating", False)
        again = inside and self._get("made") is not None  # use_cache=False: a prompt every step
        report: Report | None = self._get("stands")
        if output is not None and isinstance(active, Prefill) and active.state.cache is not None:
            note(active.state.cache, RANKED, self._ranked(active))
        if output is not None and isinstance(active, Prefill) and not again:
            repeats = len(active.state.layouts) // (self._get("prompts") or len(active.state.layouts))
            report = prompt_report(active.state, self.method, self.cost, len(self.text.layers), repeats)
            report.notes += [line for watcher in self.watchers for line in watcher.notes()]
            self._finish(report)
            vision = self._get("vision", 0.0) - self._local.vision_before
            if self._get("vision", 0.0):
                report.seconds["vision"] = self._local.vision
            report.seconds["prefill"] = self._now() - self._local.start - vision
            if not inside:
                report.seconds["total"] = sum(report.seconds.values())
                self._local.vision = 0.0
            if active.state.cache is not None:
                note(active.state.cache, "report", report)
            self._local.made = report
        elif output is not None and isinstance(active, Decode) and report is not None and not inside:
            spent = report.seconds
            spent["decode"] = spent.get("decode", 0.0) + self._now() - self._local.start
        if isinstance(active, Prefill):
            active.state.release()
        if not inside:
            self._local.media = {}
            if output is not None:
                self._publish(output, report)
        self.turnstile.leave()
        if output is None or not isinstance(active, Prefill):
            return None
        return self._with_rows(active.state.rows, output)

    def _with_rows(self, rows: Rows, output: Any) -> Any:
        """The base model's output, with the rows that the caller of the whole model wants."""
        asked: Asked | None = self._get("asked")
        if asked is None:
            return labelled(output, Asked(rows=rows).row_positions())
        asked.rows = rows
        return asked.taken(output)

    def _ranked(self, prompt: Prefill) -> Ranked | None:
        """What pieces that come later on the prompt's cache must know of it."""
        if prompt.decider is None or not prompt.decider.pruner.asks:
            return None
        ids, over = prompt.state.input_ids, bool(self._get("generating"))
        name = type(prompt.decider.pruner).__name__
        return Ranked(name, silent(ids, prompt.state.prompt_valid, self._visual(ids), self.model.config), over)

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
        if active is not None:
            for watcher in self.watchers:
                watcher.entering(i, (changed[0] if changed else args)[0])
        return changed

    def _leave_layer(self, i: int, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        active = self._active(kwargs)
        if isinstance(active, Prefill) and active.deepstack is not None:
            return active.deepstack.add(i, output, active.state.stage_at(i))
        return None
