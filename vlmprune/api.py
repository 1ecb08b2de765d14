"""The one call: attach a method to a model, return a handle, remove everything again."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .accounting.report import Report
from .errors import InactiveHandleError, UnsupportedModelError, VlmpruneError, checked
from .families import family_of, inner_model
from .flow.frames import HINT
from .guide.runner import guide_for
from .guide.session import GuidedSession
from .hf.arguments import to_device
from .hf.compatibility import check_transformers
from .hf.hooks import HANDLE
from .inputs.chat import opened, prepare, shown_at, thinner
from .methods.base import Intervention, Method
from .methods.combined import Combined, parts_of
from .methods.guided import Guided
from .methods.registry import make_method
from .runtime.call_lock import bare, call_lock_of
from .runtime.session import Session

_log = logging.getLogger(__name__)
_suggested: set[str] = set()


@dataclass(frozen=True)
class Answer:
    """What `ask` returns: the generated text and the report of the call, None where the plain model ran (`off`)."""

    text: str
    report: Report

    def __str__(self) -> str:
        return self.text


class PrunedModel:
    """Handle of a wrapped model. The model itself is wrapped; calling either is the same."""

    def __init__(self, model: Any, session: Session, processor: Any) -> None:
        self.model, self.method, self.processor = model, session.method, processor
        self._plain, self._session = session.model, session
        self.active = True
        session.attach()
        self._plain.__dict__[HANDLE] = self

    # -- use ---------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`model(...)`, wrapped."""
        with self._mine():
            return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`model.generate(...)`, wrapped."""
        with self._mine():
            return self.model.generate(*args, **kwargs)

    @checked
    def ask(
        self,
        image: Any = ...,
        question: Any = ...,
        *,
        video: Any = None,
        frames: int | None = None,
        fps: float | None = None,
        **generation_kwargs: Any,
    ) -> Answer:
        """Answer a question about images and videos.

        Args:
            image: a PIL image of any mode, the path of an image or video file, or a list of these; rotated as its EXIF
                tag says, transparent parts on white.
            question: plain text; the processor's chat template is applied.
            video: frames (a list of PIL images or of their paths, an array), the path of a video or an animated image,
                or a list of several videos; behind the images.
            frames: how many evenly spaced frames of each video are taken; of a file 32, of a list all, unless given.
            fps: of a file, how many frames a second are taken instead; of a list, how many a second it has.
            generation_kwargs: for `generate`; `max_new_tokens` is 64 unless given.
        Raises:
            VlmpruneError: no processor, no image or video, one that cannot be read, or an empty question.
        """
        if image is ... and video is not None:
            image = None
        for name, given in (("image", image), ("question", question)):
            if given is ...:  # None is a value too, and a wrong one
                raise VlmpruneError(f"ask() needs {name}; pass {name}=... to it.")
        with self._mine():  # the processor too: a tokenizer refuses to be used by two threads at once
            if self.processor is None:
                raise VlmpruneError("ask() needs the model's processor; pass wrap(model, method, processor=processor).")
            if "videos" in generation_kwargs:
                raise VlmpruneError("ask() has no option 'videos'; pass video=..., which may be a list of several.")
            image = opened(image, video=video, frames=frames, fps=fps)
            inputs = to_device(self._plain, prepare(self.processor, image, question))
            guided = self._for_guide(image, question)
            if frames_at := shown_at(image, inputs):
                guided[HINT] = frames_at
            out = self.model.generate(**inputs, **guided, **{"max_new_tokens": 64, **generation_kwargs})
            sequences = out if isinstance(out, torch.Tensor) else out.sequences
            new = sequences[0, inputs["input_ids"].shape[1] :]
            report: Any = getattr(out, "report", None)
            return Answer(self.processor.decode(new, skip_special_tokens=True).strip(), report)

    def for_guide(self, make: Callable[[Any], Any]) -> dict[str, Any]:
        """Further arguments of `generate`: the inputs of a guide that reads other ids or pixels, made by `make` from
        the guide's processor; none for all other methods."""
        session = self._session
        if isinstance(session, GuidedSession) and not session.same:
            return {"guide_inputs": make(session.guide_processor)}
        return {}

    def _for_guide(self, media: Any, question: str) -> dict[str, Any]:
        """`for_guide` of one question about images and clips, of which the guide may see fewer and smaller frames."""
        session = self._session
        if not isinstance(session, GuidedSession):
            return {}
        options = session.guide.options
        seen = thinner(media, options.guide_frames, options.guide_scale)
        if session.same and seen is media:
            return {}
        inputs = prepare(session.guide_processor or self.processor, seen, question)
        frames_at = shown_at(seen, inputs)
        return {"guide_inputs": {**inputs, **({HINT: frames_at} if frames_at else {})}}

    def get_base_model(self) -> Any:
        """The transformers model; PEFT's name for it, so that a handle stands for its model wherever one is taken."""
        return self._plain

    @property
    def report(self) -> Report:
        """Of this thread's last call; in a thread that made none, of the last call of any thread.

        What a call returns (an answer, the output of `generate` or of a forward) has that call's own as `report`.

        Raises:
            VlmpruneError: no call has ended yet.
        """
        report = self._session.calls.report
        if report is None:
            raise VlmpruneError("There is no report yet; call the model first.")
        return report

    # -- on and off --------------------------------------------------------------------------------------------

    def unwrap(self) -> Any:
        """Wait for running calls, remove everything from the model and return it; a second call does nothing."""
        with self._session.lock.generating():
            if self.active:
                self.active = False
                self._session.detach()
                if self._plain.__dict__.get(HANDLE) is self:
                    del self._plain.__dict__[HANDLE]
        return self.model

    def __enter__(self) -> "PrunedModel":
        return self

    def __exit__(self, *exc: object) -> None:
        self.unwrap()

    def __repr__(self) -> str:
        state = "" if self.active else ", inactive"
        return f"PrunedModel({type(self.model).__name__}, {self.method!r}{state})"

    @contextmanager
    def _mine(self) -> Iterator[None]:
        """Within the block the model is this thread's, and the handle stays active."""
        with self._session.lock.generating():
            if not self.active:
                raise InactiveHandleError(
                    "This handle is inactive, because its model was unwrapped or wrapped again; use the newer handle "
                    "or call wrap() again."
                )
            yield

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the block this thread runs the plain model; other threads' calls wait until it ends.

        Raises:
            InactiveHandleError: the model was unwrapped, or wrapped again.
        """
        with self._mine(), bare(self._plain):
            del self._plain.__dict__[HANDLE]  # other methods may be put on and taken off meanwhile
            try:
                yield
            finally:
                if (left := self._plain.__dict__.pop(HANDLE, None)) is not None:
                    left.unwrap()
                if self.active:
                    self._plain.__dict__[HANDLE] = self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise VlmpruneError(
            "A handle cannot be copied or pickled; copy its model, which comes out plain, and wrap the copy."
        )


@checked
def wrap(
    model: Any,
    method: Method | str | type[Method] | Sequence[Any],
    *,
    processor: Any = None,
    **options: Any,
) -> PrunedModel:
    """Wrap a loaded Hugging Face vision-language model, in place and on this instance only.

    Args:
        model: an image-text-to-text model of a supported family (see `list_families()`); PEFT and quantised ones
            too, and a wrapped model's handle.
        method: a method object, its registered name plus `options`, or a list with at most one pruner, at most one
            cache method and any number of interventions.
        processor: the model's processor, needed by `ask`.
    Returns:
        A handle; `unwrap()` or leaving its `with` block takes everything off again. Wrapping a wrapped model replaces
        the method, and the older handle turns inactive.
    Raises:
        UnsupportedModelError: not a vision-language model, or a family without an adapter.
        VlmpruneError: an unknown method, bad options, a layer the model does not have, or a transformers too old.
    Warns:
        UserWarning: once, where transformers is newer than the newest that was tested.
    """
    check_transformers()
    if isinstance(model, PrunedModel):
        model = model.model
    plain = unwrap_peft(model)
    family = family_of(plain)
    made = one_method(method, options)
    if family.adapter == "generic":
        _suggest_check(family.model_type)
    with call_lock_of(plain).generating():
        older: PrunedModel | None = plain.__dict__.get(HANDLE)
        if older is not None and processor is None:
            processor = older.processor
        # Raises before the older handle goes.
        observers = [part.observer(family, plain) for part in parts_of(made) if isinstance(part, Intervention)]
        guided = next((part for part in parts_of(made) if isinstance(part, Guided)), None)
        if guided is not None:
            guide = guide_for(guided, plain)
            session: Session = GuidedSession(plain, family, made, observers, guide=guide, processor=processor)
        else:
            session = Session(plain, family, made, observers)
        if older is not None:
            older._session.replaced = True  # calls that wait for the lock raise
            older.unwrap()
        return PrunedModel(model, session, processor)


def _suggest_check(model_type: str) -> None:
    """Once a process, for models of which nothing is declared."""
    if not _suggested:
        _suggested.add(model_type)
        _log.warning(
            "Nothing is declared about models of type %r; their parts were found by rule. "
            "vlmprune.check(model, processor) shows in seconds whether pruning is exact on this one.",
            model_type,
        )


def unwrap_peft(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself.

    Raises:
        UnsupportedModelError: not a loaded model at all.
    """
    inner = inner_model(model)
    if not isinstance(inner, nn.Module):
        raise UnsupportedModelError(
            f"An object of type {type(model).__name__!r} cannot be wrapped; pass a loaded image-text-to-text model."
        )
    return inner


def one_method(method: Method | str | type[Method] | Sequence[Any], options: dict[str, Any]) -> Method:
    """The method to attach; a list holds at most one pruner, one cache method, and each intervention once.

    Raises:
        VlmpruneError: an empty list, or methods that cannot run together.
    """
    if isinstance(method, str | Method | type):
        return make_method(method, **options)
    if not isinstance(method, Sequence):
        raise VlmpruneError(f"method must be a method object, a registered name or a list of them, got {method!r:.60}.")
    if options:
        raise VlmpruneError(
            f"The option {sorted(options)[0]!r} does not go with a list; set it on a method in it, for example "
            "[vlmprune.FastV(keep=0.25), vlmprune.VAR()]."
        )
    made = [make_method(one) for one in method]
    if not made:
        raise VlmpruneError("The list of methods is empty; pass a pruner, interventions such as VAR(), or both.")
    return made[0] if len(made) == 1 else Combined(tuple(made))
