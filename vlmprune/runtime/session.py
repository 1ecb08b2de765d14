"""The session of one wrapped model: its hooks run the flow inside the model's forwards, one call at a time.

Everything is put on this one instance and taken off again by `detach`: native hooks on the model, its base model, its
language model, vision tower and decoder layers; overridden methods (`generate`, the base model's `get_image_features`);
and, for methods that read attention, the config of the probed layer. Copies of the model leave all of it out (`Hook`).
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..accounting.report import Report
from ..attention.observer import AttentionObserver
from ..attention.probe import ProbedLayer
from ..errors import InactiveHandleError, VlmpruneError
from ..families import Family
from ..flow.frames import HINT
from ..hf.arguments import cache_in, described, has, has_visuals, media_metadata, padding_mask
from ..hf.cache_state import is_filled
from ..hf.compatibility import upstream_fault
from ..hf.hooks import conceal, replica
from ..methods.base import Method
from .base_forward import BaseForward
from .call import Call, Calls
from .call_lock import BASE, MODEL, call_lock_of
from .hook_set import HookSet
from .output_rows import Asked, asked_for
from .pieces import run_whole
from .setup import Setup


class Session:
    """A method made ready for a model by `Setup`, which raises where they do not fit, and put on it by `attach`."""

    def __init__(self, model: Any, family: Family, method: Method, observers: Sequence[AttentionObserver] = ()) -> None:
        self.model, self.family, self.method = model, family, method
        self.setup = Setup(model, family, method, observers)
        self.calls = Calls(self.setup.text)
        self.forwards = BaseForward(self.setup, self.calls)
        self.lock = call_lock_of(model)
        self.hooks = HookSet(lambda: self.calls.bypassed)
        self.replaced = False  # by another wrap of the model
        self._signatures = {module: inspect.signature(module.forward) for module in (model, self.setup.base)}

    # -- on and off --------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Put hooks, overrides and the probe on the model; the caller holds the lock where others may call it."""
        model, base, hooks = self.model, self.setup.base, self.hooks
        self.lock.sessions.append(self)
        hooks.add(functools.partial(self.lock.sessions.remove, self))
        # Not hooks: PEFT and users call `model.forward`, which runs none, and Ctrl-C in a forward skips those after it.
        for module, around in ((base, self._forward_base), (model, self._forward)):  # outermost last, if they are one
            hooks.add(conceal(module))
            hooks.override(module, "forward", around)
            hooks.override(module, "_replicate_for_data_parallel", replica)
        hooks.pre(self.setup.text, self.forwards.enter_text)
        if base is model or self.setup.inner is not None:  # its output holds logits
            hooks.post(self.setup.text, self.forwards.leave_text)
        tower = self.family.vision_tower(model)
        if tower is not None:
            hooks.pre(tower, self._enter_vision)
            hooks.post(tower, self._leave_vision)
        for i, layer in enumerate(self.setup.text.layers):
            hooks.pre(layer, functools.partial(self.forwards.enter_layer, i))
            if self.family.deepstack or self.setup.cache_method is not None:
                hooks.post(layer, functools.partial(self.forwards.leave_layer, i))
        if self.setup.text is base:  # its forward has begun, and its vision stage is over, where its first layer runs
            hooks.pre(self.setup.text.layers[0], self.forwards.enter_text)
        hooks.override(model, "generate", self._generate)
        if hasattr(model.base_model, "get_image_features"):
            hooks.override(model.base_model, "get_image_features", functools.partial(self._features, "image"))
        if hasattr(model.base_model, "get_video_features"):
            hooks.override(model.base_model, "get_video_features", functools.partial(self._features, "video"))
        if self.setup.inner is not None:
            hooks.override(self.setup.inner, "generate", self._generate_inner)
        for module in [*self.setup.probed.values(), *([self.setup.tower.module] if self.setup.tower else [])]:
            hooks.add(ProbedLayer(module).remove)

    def detach(self) -> None:
        """Take everything off again, in reverse order."""
        self.hooks.remove()
        self.forwards.clear()

    # -- generate ----------------------------------------------------------------------------------------------

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.calls.bypassed:
            kwargs.pop(HINT, None)
            return original(*args, **kwargs)
        with self.lock.generating():
            if not self.hooks:  # taken off while this call waited: ask whatever is on the model now
                return self.model.generate(*args, **kwargs)
            out, report = self._reported(original, args, kwargs, self.calls.now.importance)
            return self.calls.publish(out, report)

    def _generate_inner(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`generate` of the language model, which the model's own calls with embeddings; the ids stand beside them."""
        call = self.calls.now
        if call.brought is not None and kwargs.get("input_ids") is not None:
            call.brought["input_ids"] = kwargs["input_ids"]
        return original(*args, **kwargs)

    def _reported(
        self, original: Callable[..., Any], args: Any, kwargs: dict[str, Any], importance: list[Tensor] | None
    ) -> tuple[Any, Report | None]:
        """What `generate` returns, and the report of its prompt: on a filled cache, of the prompt that filled it."""
        if self.setup.inner is not None:  # its own names of arguments, in its own order
            given = inspect.signature(original).bind_partial(*args, **kwargs).arguments
            args, kwargs = (), {**given.pop("generate_kwargs", {}), **given}
        self.family.check_video(kwargs)
        frames, whole = kwargs.pop(HINT, None), None
        if (has_visuals(kwargs) and self.setup.changes_prompts) or self.setup.cache_method is not None:
            whole = run_whole(self.model, kwargs, config=args[1] if len(args) > 1 else None)
        ids = kwargs.get("input_ids", args[0] if args else kwargs.get("inputs"))
        try:
            with self.calls.generating(ids, importance) as call:
                call.brought, call.own_cache = self.setup.brought(kwargs), cache_in(kwargs) is None
                call.frames = call.frames if frames is None else frames
                start = call.clock.now()
                out = original(*args, **kwargs)
                call.end_cache()
        finally:
            self.forwards.clear()
        if call.made is None:
            return out, call.standing
        call.made.notes += [whole] if whole else []
        spent = call.made.seconds
        spent["total"] = call.clock.now() - start
        spent["decode"] = max(0.0, spent["total"] - sum(v for k, v in spent.items() if k != "total"))
        return out, call.made

    # -- vision ------------------------------------------------------------------------------------------------

    def _features(self, kind: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What encodes the images, or the videos, of a prompt; only the outer one where one calls the other."""
        call = self.calls.now
        if call.encoding:
            return original(*args, **kwargs)
        given = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        if self._are_frames(call, given):
            kind = "video"
        call.encoding = True
        try:
            out = original(*args, **kwargs)
        finally:
            call.encoding = False
        call.media[kind] = {**media_metadata(given), **described(out)}
        return out

    def _are_frames(self, call: Call, given: dict[str, Any]) -> bool:
        """Whether a forward has its video encoded as images are, by a model without an encoder of videos."""
        prompt = {name: value for name, value in (call.arguments or {}).items() if name != "mm_encoder_outputs"}
        videos = prompt.get("pixel_values_videos")
        if videos is None or hasattr(self.model.base_model, "get_video_features"):
            return False
        return given.get("pixel_values") is videos or not has(prompt, "image")

    def _enter_vision(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.calls.now.clock.begin_vision()
        if self.setup.tower is not None:
            self.setup.tower.begin()

    def _leave_vision(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.calls.now.clock.end_vision()
        if self.setup.tower is not None:
            self.setup.tower.end()

    # -- the whole model: one call at a time; labels, and which rows the caller wants --------------------------

    @torch.compiler.disable
    def _enter(self, level: int) -> bool:
        """Wait for this thread's turn; False where the model is to run as if it were not wrapped, an error where
        another wrap took this one's place meanwhile."""
        if self.calls.bypassed:
            return False
        self.lock.enter(level)
        if self.hooks:
            return True
        self.lock.leave(level)
        if self.replaced:
            raise InactiveHandleError("The model was wrapped again while this call waited for it; call it again.")
        return False

    @torch.compiler.disable
    def _leave_call(self, output: Any) -> None:
        call = self.calls.now
        call.asked = None
        if not call.generating:
            if output is not None:
                self.calls.publish(output, call.report)
            self.calls.end()
        self.lock.leave(MODEL)

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        frames = kwargs.pop(HINT, None)
        if not self._enter(MODEL):
            return original(*args, **kwargs)
        if frames is not None:
            self.calls.now.frames = frames
        output = None
        try:
            asked, args, kwargs = self._enter_model(args, kwargs)
            output = original(*args, **kwargs)
            if asked is not None:
                output = asked.finish(self.model, output)
            return output
        except (AttributeError, ValueError, RuntimeError) as error:
            self._explain(error, args, kwargs)
            raise
        finally:
            self._leave_call(output)

    @torch.compiler.disable
    def _enter_model(self, args: Any, kwargs: dict[str, Any]) -> tuple[Asked | None, Any, dict[str, Any]]:
        """Take out what depends on the rows that a prompt will have: its labels, and which of its logits to keep."""
        given = self._arguments(self.model, args, kwargs)
        self.family.check_video(given)
        if is_filled(cache_in(given)):  # a step has all its rows
            return None, args, kwargs
        self.calls.now.brought = self.setup.brought(given)
        bound = self._signatures[self.model].bind_partial(*args, **kwargs)
        prunes = self.setup.pruner is not None and has_visuals(given)
        lines_up = self.model.training and not self.calls.now.generating
        cuts = self.setup.cut is not None
        asked = asked_for(bound, prunes=prunes, cross=self.family.cross_attention, lined_up=lines_up, cuts=cuts)
        self.calls.now.asked = asked
        return asked, bound.args, bound.kwargs

    @torch.compiler.disable
    def _explain(self, error: Exception, args: Any, kwargs: dict[str, Any]) -> None:
        """Say it in our words where transformers is known to fail, and where a prompt failed whose text and images do
        not add up: it may be a piece of one."""
        if (fault := upstream_fault(self.model, error)) is not None:
            raise VlmpruneError(fault) from error
        given = self._arguments(self.model, args, kwargs)
        ids = given.get("input_ids")
        if isinstance(error, AttributeError | VlmpruneError) or ids is None or not self.setup.changes_prompts:
            return
        try:
            self.forwards.locator.layouts(self.calls.now, given, ids, padding_mask(given.get("attention_mask"), ids))
        except VlmpruneError as ours:
            raise ours from error

    def _arguments(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a forward of the model or its base was given, by name."""
        given = self._signatures[module].bind_partial(*args, **kwargs).arguments
        return {**given.pop("kwargs", {}), **given}

    # -- the base model: a forward begins and ends -------------------------------------------------------------

    @torch.compiler.disable
    def _begin_base(self, args: Any, kwargs: dict[str, Any]) -> None:
        self.forwards.begin(self._arguments(self.setup.base, args, kwargs))

    @torch.compiler.disable
    def _leave_base(self, output: Any) -> Any:
        try:
            return self.forwards.end(output)
        finally:
            self.lock.leave()

    @torch.compiler.disable(recursive=False)  # one graph break, not one for each of its calls
    def _forward_base(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        frames = kwargs.pop(HINT, None)
        if not self._enter(BASE):
            return original(*args, **kwargs)
        if frames is not None:
            self.calls.now.frames = frames
        output = None
        try:
            self._begin_base(args, kwargs)
            output = original(*args, **kwargs)
        finally:
            output = self._leave_base(output)
        return output
