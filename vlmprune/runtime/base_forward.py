"""What happens inside one forward of the base model: it begins, its decoder layers run, it ends."""

import functools
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ..accounting.build_report import prompt_report
from ..attention.observer import edited
from ..attention.probe import clear_observers, exchange_calls, group_calls, observe
from ..errors import VlmpruneError
from ..hf.arguments import cache_in, has_visuals, padding_mask
from ..hf.cache_state import PrunedPrompt, attach_state, is_filled, recall, repeated, state_of
from ..hf.grouped_layer import GroupedLayer
from ..methods.base import Method
from ..methods.kv.base import CacheReader
from .cache_cut import cut_notes, cutter_for, settled
from .call import Call, Calls
from .cross_prefill import CrossPrefill
from .decode import Decode
from .deepstack import taken
from .fit import check_grows
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
        self.setup.family.check_video(given)
        cache = cache_in(given)
        if call.brought and not is_filled(cache):
            given = {**call.brought, **{name: value for name, value in given.items() if value is not None}}
            if given.get("input_ids") is not None and given.get("inputs_embeds") is not None:  # beams repeat the rows
                given["input_ids"] = repeated(given["input_ids"], len(given["inputs_embeds"]))
        call.standing, state = state_of(cache, "report"), recall(cache)
        if not call.generating:
            call.own_cache = cache is None
        first, call.begins = call.begins, False
        ids = given.get("input_ids")
        if is_filled(cache):
            changes = self.setup.changes_prompts and has_visuals(given)
            if changes and ids is not None and bool(self.locator.visual(ids).any()):
                raise VlmpruneError(
                    "A new image or video in a later turn on a filled cache cannot be pruned yet; run the whole "
                    "conversation as one prompt without a cache."
                )
            came = ids if ids is not None else given["inputs_embeds"]
            if state is not None:
                check_later(state_of(cache, RANKED), came.shape[1], generating=call.generating, begins=first)
            call.cache = cache
            call.forward = Decode(self.setup, state, given.get("attention_mask"), tuple(came.shape[:2]))
        if call.forward is None or not call.generating:  # `generate` itself times its steps
            call.clock.begin_forward()
        if call.forward is not None:
            for observer in self.setup.observers:
                observer.begin_decode(ids, cache)
            self._watch()
            self._select(call, state)
            for i, layer in enumerate(cache.layers):
                if isinstance(layer, GroupedLayer) and i in self.setup.probed:
                    group_calls(self.setup.probed[i], layer)
        else:
            valid = None if ids is None else padding_mask(given.get("attention_mask"), ids)
            with self.calls.bypass():  # what they run now is nobody's prompt, on a base that is the language model too
                for observer in self.setup.observers:
                    observer.begin(ids, valid)
        call.arguments = given

    def _watch(self) -> None:
        """Let the observers see the attention calls of this forward."""
        for observer, layers in zip(self.setup.observers, self.setup.observed, strict=True):
            for i in layers:
                see, step = functools.partial(edited, observer, i), functools.partial(observer.step, i)
                observe(self.setup.probed[i], see, step)

    def _select(self, call: Call, state: PrunedPrompt | None) -> None:
        """Let a method that reads a part of the cache choose it in this step."""
        method, setup = self.setup.cache_method, self.setup
        if not isinstance(method, CacheReader):
            return
        for i in setup.cut_layers:
            check_grows(method, call.cache, i)
        if call.selector is None:
            call.selector = method.selector(setup.cut_layers, len(setup.attentions))
        found = {i: None if state is None else state.at(i) for i in setup.cut_layers}
        call.selector.begin({i: None if own is None else own.layer for i, own in found.items()})
        for i in setup.cut_layers:
            exchange_calls(setup.probed[i], functools.partial(call.selector.exchange, i))

    def enter_text(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """The vision stage is over and the decoder layers are next: locate the visual tokens of a new prompt."""
        call, setup = self.calls.now, self.setup
        if call.arguments is None or call.forward is not None:
            return None
        state = self.locator.prompt(call, call.arguments)
        decider = setup.decider(state)
        given = kwargs
        deepstack, kwargs = (None, kwargs) if decider is None else taken(kwargs)
        kind = CrossPrefill if setup.family.cross_attention else Prefill
        call.forward = kind(setup, state, decider, deepstack)
        few = kwargs.get("logits_to_keep")
        if setup.cut is not None and isinstance(few, int) and few and not setup.may_cut(state, decider, few):
            kwargs = {**kwargs, "logits_to_keep": 0}
            recorded = any(kwargs.get(f"output_{name}") for name in ("hidden_states", "attentions", "router_logits"))
            if setup.text.config._attn_implementation in ("sdpa", "eager") and not recorded:
                call.forward.spared = setup.cut, few
        if decider is not None and not decider.pruner.reads_own_layer:  # such a layer is read ahead of its run
            for i in setup.read:
                observe(setup.probed[i], functools.partial(decider.observe, layer=i))
        if (cutter := cutter_for(setup, state, call.repeats(len(state.layouts)))) is not None:
            call.forward.cutter = cutter
            for i in setup.cut_layers if cutter.method.reads_attention else ():
                observe(setup.probed[i], functools.partial(cutter.observe, layer=i))
        for observer in self.setup.observers:
            observer.prompt(state)
        self._watch()
        return None if kwargs is given else (args, kwargs)

    def leave_text(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Where the base model is one with a head: only the rows that the caller asked for get logits."""
        call = self.calls.now
        if call.asked is None or not isinstance(call.forward, Prefill):
            return None
        return call.asked.taken(output, call.forward.state.rows)

    def end(self, output: Any) -> Any:
        """It has run, or raised where `output` is None; returns the output that takes its place."""
        call, forward, ran = self.calls.now, self.clear(), output is not None
        if isinstance(forward, Prefill):
            if ran:
                self._end_prompt(call, forward)
            call.cache = forward.state.cache
            forward.state.cache = None  # observers keep the state, and must not keep a cache alive
        elif ran and forward is not None:
            call.end_step()
        if ran and isinstance(forward, Decode) and forward.state is not None and call.standing and not call.generating:
            spent = call.standing.seconds
            spent["decode"] = spent.get("decode", 0.0) + call.clock.forward()
        if not call.generating:
            call.end_cache()
            call.media, call.frames, call.clock.vision = {}, None, 0.0  # these images are no later forward's
            if ran:
                self.calls.publish(output, call.report)
        if not ran or not isinstance(forward, Prefill):
            return output
        rows = forward.state.rows
        if call.asked is None:
            return labelled(output, Asked(rows=rows).row_positions())
        # Taken already where the base model has a head, so that its output holds logits.
        return output if call.asked.rows is not None else call.asked.taken(output, rows)

    def _end_prompt(self, call: Call, prompt: Prefill) -> None:
        """The report of a prompt, and what its cache keeps of it."""
        state, cutter = prompt.state, prompt.cutter
        cut = settled(self.setup, state, cutter, call.own_cache)
        if state.cache is not None:
            by: Method | None = None if cutter is None else cutter.method
            if prompt.decider is not None and prompt.decider.pruner.asks:
                by = prompt.decider.pruner
            text = None
            if by is not None:
                visual = self.locator.visual(state.input_ids)
                text = ranked(by, state, visual, self.setup.model.config, call.generating)
            attach_state(state.cache, RANKED, text)
        if call.generating and call.made is not None:  # use_cache=False: a prompt every step
            return
        repeats = call.repeats(len(state.layouts))
        last_rows = prompt.spared or state.last_rows
        report = prompt_report(state, self.setup.method, self.setup.cost, repeats, last_rows, cut)
        report.adapter = self.setup.family.adapter
        report.notes += self.setup.late(state, last_rows) + cut_notes(self.setup, cutter, cut)
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
        if forward is None and (positions := _positions(kwargs)) is not None:
            forward = self._recomputed.get(positions)
        return forward

    def enter_layer(self, i: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        args, kwargs = self.setup.named(i, args, kwargs)
        forward = self._running(kwargs)
        if forward is None:
            return None
        added = None
        if isinstance(forward, Prefill) and (deepstack := forward.deepstack) is not None and deepstack.before:
            added = deepstack.add(i, args[0], forward.state.stage_at(i - 1))
            args = args if added is None else (added, *args[1:])
        changed = forward.enter(i, args, kwargs) or (None if added is None else (args, kwargs))
        if module.training and isinstance(forward, Prefill):
            # Up to transformers 5.20 at least, hooks run inside of the checkpoint, the second time without the
            # thread's forward: before the layer they see its old arguments, after it the new ones.
            for seen in (kwargs, changed[1] if changed else kwargs):
                if (positions := _positions(seen)) is not None:
                    self._recomputed[positions] = forward.again
        if self.setup.observers:
            stream = forward.stream(i, (changed[0] if changed else args)[0])
            for observer in self.setup.observers:
                observer.before_layer(i, stream)
        return changed

    def leave_layer(self, i: int, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        forward = self._running(kwargs)
        if isinstance(forward, Prefill) and forward.cutter is not None:
            forward.cutter.layer_done(i)
        if isinstance(forward, Prefill) and forward.deepstack is not None and not forward.deepstack.before:
            return forward.deepstack.add(i, output, forward.state.stage_at(i))
        return None


def _positions(kwargs: dict[str, Any]) -> Tensor | None:
    """A tensor by which a layer's arguments are known again: of its rotary embeddings, else of its position ids."""
    given = kwargs.get("position_embeddings")
    given = kwargs.get("position_ids") if given is None else given
    return given[0] if isinstance(given, tuple | list) else given
