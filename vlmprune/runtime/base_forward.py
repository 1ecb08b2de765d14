"""What happens inside one forward of the base model: it begins, its decoder layers run, it ends."""

import functools
from typing import Any

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from ..accounting.build_report import prompt_report
from ..attention.observer import edited
from ..attention.probe import clear_observers, observe
from ..errors import VlmpruneError
from ..hf.arguments import cache_in, has_image, padding_mask, refuse_video
from ..hf.cache_state import attach_state, is_filled, recall, state_of
from .call import Call, Calls
from .cross_prefill import CrossPrefill
from .decode import Decode
from .deepstack import DeepStack
from .locate import Locator
from .output_rows import Asked, labelled
from .pieces import RANKED, check_later, ranked
from .prefill import Prefill
from .setup import Setup


class BaseForward:
    """The hooks of the base model, of its language model and of the decoder layers, run by a session."""

    def __init__(self, setup: Setup, calls: Calls) -> None:
        self.setup, self.calls, self.locator = setup, calls, Locator(setup)
        self._recomputed = WeakIdKeyDictionary()

    def clear(self) -> Prefill | Decode | None:
        """This thread's forward is over, or was interrupted; what it was."""
        clear_observers(self.setup.probed.values())
        call = self.calls.now
        forward, call.forward, call.arguments = call.forward, None, None
        return forward

    def begin(self, given: dict[str, Any]) -> None:
        """The base model is called with these arguments."""
        call = self.calls.now
        self.clear()
        if not call.generating:
            call.made = None
        refuse_video(given)
        cache = cache_in(given)
        call.standing, state = state_of(cache, "report"), recall(cache)
        first, call.begins = call.begins, False
        ids = given.get("input_ids")
        if is_filled(cache):
            changes = self.setup.changes_prompts and has_image(given)
            if changes and ids is not None and bool(self.locator.visual(ids).any()):
                raise VlmpruneError(
                    "A new image in a later turn on a filled cache cannot be pruned yet; run the whole conversation as "
                    "one prompt without a cache."
                )
            if state is not None:
                came = ids if ids is not None else given["inputs_embeds"]
                check_later(state_of(cache, RANKED), came.shape[1], generating=call.generating, begins=first)
            call.forward = Decode(self.setup, state, given.get("attention_mask"))
        if call.forward is None or not call.generating:  # `generate` itself times its steps
            call.clock.begin_forward()
        if call.forward is not None:
            for observer in self.setup.observers:
                observer.begin_decode(ids, cache)
            self._watch()
        else:
            for observer in self.setup.observers:  # `arguments` is not set yet: what they run now is nobody's prompt
                observer.begin(ids, None if ids is None else padding_mask(given.get("attention_mask"), ids))
        call.arguments = given

    def _watch(self) -> None:
        """Let the observers see the attention calls of this forward."""
        for observer, layers in zip(self.setup.observers, self.setup.observed, strict=True):
            for i in layers:
                observe(self.setup.probed[i], functools.partial(edited, observer, i))

    def enter_text(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """The vision stage is over and the decoder layers are next: locate the visual tokens of a new prompt."""
        call, setup = self.calls.now, self.setup
        if call.arguments is None or call.forward is not None:
            return None
        state = self.locator.prompt(call, call.arguments)
        decider = setup.decider(state)
        changed = deepstack = None
        if decider is not None and kwargs.get("deepstack_visual_embeds") is not None:
            kwargs = dict(kwargs)
            deepstack = DeepStack(kwargs.pop("visual_pos_masks"), kwargs.pop("deepstack_visual_embeds"))
            changed = args, kwargs
        kind = CrossPrefill if setup.family.cross_attention else Prefill
        call.forward = kind(setup, state, decider, deepstack)
        if decider is not None and not decider.pruner.reads_own_layer:  # such a layer is read ahead of its run
            for i in setup.read:
                observe(setup.probed[i], decider.observe)
        for observer in self.setup.observers:
            observer.prompt(state)
        self._watch()
        return changed

    def end(self, output: Any) -> Any:
        """It has run, or raised where `output` is None; returns the output that takes its place."""
        call, forward, ran = self.calls.now, self.clear(), output is not None
        if isinstance(forward, Prefill):
            if ran:
                self._end_prompt(call, forward)
            forward.state.cache = None  # observers keep the state, and must not keep a cache alive
        elif ran and forward is not None and forward.state is not None and call.standing and not call.generating:
            spent = call.standing.seconds
            spent["decode"] = spent.get("decode", 0.0) + call.clock.forward()
        if not call.generating:
            call.image_metadata, call.clock.vision = {}, 0.0  # these images are no later forward's
            if ran:
                self.calls.publish(output, call.report)
        if not ran or not isinstance(forward, Prefill):
            return output
        rows = forward.state.rows
        if call.asked is None:
            return labelled(output, Asked(rows=rows).row_positions())
        return call.asked.taken(output, rows)

    def _end_prompt(self, call: Call, prompt: Prefill) -> None:
        """The report of a prompt, and what its cache keeps of it."""
        state = prompt.state
        if state.cache is not None:
            over, visual = call.generating, self.locator.visual(state.input_ids)
            pruner = None if prompt.decider is None else prompt.decider.pruner
            attach_state(state.cache, RANKED, ranked(pruner, state, visual, self.setup.model.config, over))
        if call.generating and call.made is not None:  # use_cache=False: a prompt every step
            return
        repeats = len(state.layouts) // (call.prompts or len(state.layouts))
        report = prompt_report(state, self.setup.method, self.setup.cost, repeats)
        report.notes += [line for observer in self.setup.observers for line in observer.notes()]
        if call.complete is not None:
            call.complete(report)
        report.seconds.update(call.clock.prompt())
        if not call.generating:
            report.seconds["total"] = sum(report.seconds.values())
        if state.cache is not None:
            attach_state(state.cache, "report", report)
        call.made = report

    def _running(self, kwargs: dict[str, Any]) -> Prefill | Decode | None:
        """This thread's forward, or the one whose layer gradient checkpointing runs a second time."""
        forward = self.calls.now.forward
        if forward is None and kwargs.get("position_embeddings") is not None:
            forward = self._recomputed.get(kwargs["position_embeddings"][0])
        return forward

    def enter_layer(self, i: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        forward = self._running(kwargs)
        if forward is None:
            return None
        changed = forward.enter(i, args, kwargs)
        if module.training and isinstance(forward, Prefill):
            # Up to transformers 5.20 at least, hooks run inside of the checkpoint, the second time without the
            # thread's forward: before the layer they see its old arguments, after it the new ones.
            for seen in (kwargs, changed[1] if changed else kwargs):
                self._recomputed[seen["position_embeddings"][0]] = forward
        for observer in self.setup.observers:
            observer.before_layer(i, (changed[0] if changed else args)[0])
        return changed

    def leave_layer(self, i: int, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        forward = self._running(kwargs)
        if isinstance(forward, Prefill) and forward.deepstack is not None:
            return forward.deepstack.add(i, output, forward.state.stage_at(i))
        return None
