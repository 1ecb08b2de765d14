"""The one call: attach a method to a model, hand out a handle, take everything off again."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn

from .arguments import on
from .errors import InactiveHandleError, UnsupportedModelError, VlmpruneError
from .families import family_of, inner_model
from .guide.session import GuidedSession
from .inputs import check_conversation
from .methods.base import Intervention, Method
from .methods.combined import Combined, parts_of
from .methods.guided import Guided
from .methods.registry import make_method
from .pictures import as_rgb
from .report import Report
from .runtime.compatibility import check_transformers
from .session import Session

_HANDLE = "_vlmprune_handle"


@dataclass(frozen=True)
class Answer:
    """What `ask` returns: the generated text and the report of the call."""

    text: str
    report: Report

    def __str__(self) -> str:
        return self.text


class PrunedModel:
    """Handle of a wrapped model. The model itself is wrapped; calling either is the same."""

    def __init__(self, model: Any, session: Session, processor: Any) -> None:
        self.model, self.method, self.processor = model, session.method, processor
        self._plain, self._session = session.model, session
        self._active = True
        self._put_on()

    # -- use ---------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`model(...)`, wrapped."""
        self._check_active()
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`model.generate(...)`, wrapped."""
        self._check_active()
        return self.model.generate(*args, **kwargs)

    def ask(self, image: Any, question: str, **generation_kwargs: Any) -> Answer:
        """Answer a question about a picture.

        Args:
            image: a PIL image of any mode, or a list of them; turned as its EXIF tag says, transparency on white.
            question: plain text; the processor's chat template is applied.
            generation_kwargs: for `generate`; `max_new_tokens` is 64 unless given.
        Raises:
            VlmpruneError: no processor, no image, or an empty question.
        """
        self._check_active()
        if self.processor is None:
            raise VlmpruneError("ask() needs the model's processor; pass wrap(model, method, processor=processor).")
        inputs = on(self._plain, prepare(self.processor, image, question))
        guided = self.for_guide(lambda processor: prepare(processor, image, question))
        out = self.model.generate(**inputs, **guided, **{"max_new_tokens": 64, **generation_kwargs})
        sequences = out if isinstance(out, torch.Tensor) else out.sequences
        new = sequences[0, inputs["input_ids"].shape[1] :]
        return Answer(self.processor.decode(new, skip_special_tokens=True).strip(), self.report)

    def for_guide(self, make: Callable[[Any], Any]) -> dict[str, Any]:
        """What `generate` needs beside its inputs: those of a guide that reads other ids or pixels, made by `make` from
        the guide's processor; nothing for all other methods."""
        session = self._session
        if isinstance(session, GuidedSession) and not session.same:
            return {"guide_inputs": make(session.guide_processor)}
        return {}

    @property
    def report(self) -> Report:
        """Of the last call.

        Raises:
            VlmpruneError: there was none yet.
        """
        if self._session.report is None:
            raise VlmpruneError("There is no report yet; call the model first.")
        return self._session.report

    # -- on and off --------------------------------------------------------------------------------------------

    def _put_on(self) -> None:
        self._session.attach()
        self._plain.__dict__.update({_HANDLE: self, "__deepcopy__": self._deepcopy})

    def _take_off(self) -> None:
        self._session.detach()
        del self._plain.__dict__[_HANDLE], self._plain.__dict__["__deepcopy__"]

    @property
    def active(self) -> bool:
        return self._active

    def unwrap(self) -> Any:
        """Take everything off the model and return it; calling it again does nothing."""
        if self._active:
            self._active = False
            self._take_off()
        return self.model

    def __enter__(self) -> PrunedModel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.unwrap()

    def __repr__(self) -> str:
        state = "" if self._active else ", inactive"
        return f"PrunedModel({type(self.model).__name__}, {self.method!r}{state})"

    def _check_active(self) -> None:
        if not self._active:
            raise InactiveHandleError(
                "This handle is inactive, because its model was unwrapped or wrapped again; use the newer handle or "
                "call wrap() again."
            )

    def _deepcopy(self, memo: dict[int, Any]) -> Any:
        """`copy.deepcopy(model)` sees the plain model: off, copy, on again."""
        with self.off():
            return copy.deepcopy(self._plain, memo)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the block the model is plain; other threads' calls wait."""
        with self._session.turnstile.generating():
            self._take_off()
            try:
                yield
            finally:
                self._put_on()


def wrap(
    model: Any, method: Method | str | type[Method] | Sequence[Any], *, processor: Any = None, **options: Any
) -> PrunedModel:
    """Wrap a loaded Hugging Face vision-language model, in place and on this instance only.

    Args:
        model: an image-text-to-text model of a supported family (see `families()`); PEFT and quantised ones too.
        method: a method object, its registered name plus `options`, or a list with at most one pruner
            and any number of interventions.
        processor: the model's processor, needed by `ask`.
    Returns:
        A handle; `unwrap()` or leaving its `with` block takes everything off again. Wrapping a wrapped model replaces
        the method, and the older handle turns inactive.
    Raises:
        UnsupportedModelError: no vision-language model, or a family without an adapter.
        VlmpruneError: an unknown method, bad options, a layer the model does not have, or a transformers too old.
    Warns:
        UserWarning: once, where transformers is newer than the newest that was tested.
    """
    check_transformers()
    plain = plain_model(model)
    family = family_of(plain)
    older: PrunedModel | None = plain.__dict__.get(_HANDLE)
    if older is not None and processor is None:
        processor = older.processor
    made = one_method(method, options)
    # Raises before the older handle goes.
    watchers = [part.watcher(family, plain) for part in parts_of(made) if isinstance(part, Intervention)]
    if any(isinstance(part, Guided) for part in parts_of(made)):
        session: Session = GuidedSession(plain, family, made, watchers, processor=processor)
    else:
        session = Session(plain, family, made, watchers)
    if older is not None:
        older.unwrap()
    return PrunedModel(model, session, processor)


def plain_model(model: Any) -> Any:
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


def unwrapped(plain: Any) -> AbstractContextManager[None]:
    """Within the block a model, wrapped or not, is plain."""
    handle: PrunedModel | None = plain.__dict__.get(_HANDLE)
    return nullcontext() if handle is None else handle.off()


def one_method(method: Method | str | type[Method] | Sequence[Any], options: dict[str, Any]) -> Method:
    """The method to attach; a list holds at most one pruner and each intervention once.

    Raises:
        VlmpruneError: an empty list, or methods that cannot run together.
    """
    if isinstance(method, str | Method | type):
        return make_method(method, **options)
    if not isinstance(method, Sequence):
        raise VlmpruneError(f"{method!r} is no method; pass a method object, a registered name, or a list of them.")
    made = [make_method(one, **options) for one in method]
    if not made:
        raise VlmpruneError("The list of methods is empty; pass a pruner, interventions such as VAR(), or both.")
    return made[0] if len(made) == 1 else Combined(tuple(made))


def prepare(processor: Any, image: Any, question: str) -> Any:
    """Model inputs for one question about one or several pictures.

    Raises:
        VlmpruneError: as `talk_about` and `tokenized`.
    """
    talk = talk_about(image, question)
    warn_unknown_words(processor, question)
    return tokenized(processor, talk)


def talk_about(image: Any, question: str) -> list[dict[str, Any]]:
    """One question about one or several pictures, as chat templates take it.

    Raises:
        VlmpruneError: no picture, something that is none, or an empty question.
    """
    images = list(image) if isinstance(image, list | tuple) else [image]
    for one in images:
        if not isinstance(one, Image.Image):
            raise VlmpruneError(f"{one!r:.80} is no picture; pass a PIL image or a list of PIL images.")
    if not images:
        raise VlmpruneError("The list of pictures is empty; pass a PIL image or a list of PIL images.")
    if not isinstance(question, str) or not question.strip():
        raise VlmpruneError(f"question={question!r} is empty; ask something about the picture.")
    return conversation(images, question)


def conversation(images: Sequence[Image.Image], question: str) -> list[dict[str, Any]]:
    """One user turn, pictures first and in RGB, as chat templates take it."""
    content = [{"type": "image", "image": as_rgb(one)} for one in images] + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def tokenized(processor: Any, talk: list[Any], **options: Any) -> Any:
    """Model inputs of a conversation, or of a list of them with the `options` that batches need.

    Raises:
        VlmpruneError: a text holds a token that marks an image or a video.
    """
    check_conversation(processor, talk)
    # Tokenizing the rendered text apart would put a second BOS in front of the template's.
    return processor.apply_chat_template(
        talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
    )


def batched(processor: Any, talks: list[Any]) -> Any:
    """Model inputs of several conversations; padded left, every row ends where its answer starts."""
    return tokenized(processor, talks, processor_kwargs={"padding": True, "padding_side": "left"})


def unknown_words(processor: Any, question: str) -> list[str]:
    """The words of a question that the tokenizer can only read as "unknown"."""
    tokenizer = getattr(processor, "tokenizer", None)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if tokenizer is None or unknown is None:
        return []
    return [word for word in question.split() if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]


def warn_unknown_words(processor: Any, question: str) -> None:
    """Warn about them."""
    if words := unknown_words(processor, question):
        warnings.warn(unknown_words_note(words), stacklevel=4)


def unknown_words_note(words: Sequence[str]) -> str:
    """What to tell a user about words that the tokenizer does not know."""
    return f"The tokenizer does not know {', '.join(map(repr, words))}; the model cannot see these words."
