"""The engine owns the models: one visitor at a time uses them, and results come out as a stream.

A wrapped model carries the method of whoever wrapped it last, and SGL runs two models for one answer: one lock stands
before all of them, so that no user ever meets another's method or state. Shapes: V visual tokens of an image.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import TextStreamer

import vlmprune

from ...accounting.scores import sureness
from ...api import Answer, unwrap_peft, wrap
from ...attention.observer import AttentionObserver
from ...attention.probe import AttentionCall
from ...errors import VlmpruneError
from ...families import family_of
from ...flow.locate import ImageSpan, last_valid
from ...flow.prompt_state import PromptState
from ...flow.score import visual_columns
from ...guide.runner import Guide
from ...harness.models import Models, make, options_of
from ...hf.arguments import to_device
from ...inputs.chat import prepare, unknown_words
from ...methods.none import Unpruned
from ...runtime.call_lock import attached
from ...runtime.session import Session
from ...tiny import example

LONGEST_QUESTION = 2000  # characters
MAX_NEW_TOKENS = 64
GREEDY: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "num_beams": 1}
Send = Callable[[Any], None]


class _Gone(BaseException):
    """The listener left. A BaseException, so that the running work does not catch it."""


@dataclass(frozen=True)
class Small:
    """The small model alone: answer, confidence, consistency, and SGL's ranking: `importance` [V] on its own `span`."""

    text: str
    confidence: float
    consistency: float
    seconds: float
    importance: Tensor
    span: ImageSpan

    @property
    def sure(self) -> float:
        """SGL's S, what `exit_at` is compared with."""
        return sureness(self.confidence, self.consistency)


@dataclass(frozen=True)
class AskResult:
    """The result of one question. `attention`: by decoder layer [V], of the unpruned large model."""

    image: Image.Image
    question: str
    unpruned: Answer
    pruned: Answer
    small: Small | None
    attention: dict[int, Tensor]
    notes: list[str]

    @property
    def span(self) -> ImageSpan:
        """The image's visual tokens and which of them were kept."""
        return self.pruned.report.images[0][0]

    @property
    def layers(self) -> int:
        return len(self.unpruned.report.layer_lengths)

    def alive(self, layer: int) -> int:
        """How many visual tokens a decoder layer sees."""
        report, full = self.pruned.report, self.unpruned.report
        gone = full.layer_lengths[layer] - report.layer_lengths[layer]
        return max(0, full.visual_tokens[0] - gone)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable, in the words of `vlmprune ask --json`."""
        record: dict[str, Any] = {
            side: {"text": answer.text, "report": answer.report.to_dict()}
            for side, answer in (("unpruned", self.unpruned), ("pruned", self.pruned))
        }
        if self.small is not None:
            record["small"] = {name: getattr(self.small, name) for name in ("text", "confidence", "consistency")}
        return record | {"notes": self.notes}


class AttentionRecorder(AttentionObserver):
    """Keeps, by layer, the attention of the last prompt token to each visual token, mean over heads: [V]."""

    def __init__(self, *, causal: bool) -> None:
        self.causal = causal
        self.found: dict[int, Tensor] = {}

    def prompt(self, state: PromptState) -> None:
        self.state = state

    def attention(self, layer: int, call: AttentionCall, output: Tensor) -> None:
        rows = last_valid(self.state.valid).to(call.query.device)[:, None]
        received = call.weights(rows, causal=self.causal).mean(dim=1)[:, 0]
        self.found[layer] = visual_columns(received, self.state.layouts)[0].cpu()


def attention_maps(model: Any, inputs: Any) -> dict[int, Tensor]:
    """By decoder layer that sees the image: attention of the last prompt token to the visual tokens [V]."""
    plain = unwrap_peft(model)
    family = family_of(plain)
    recorder = AttentionRecorder(causal=not family.cross_attention)
    with attached(Session(plain, family, Unpruned(), [recorder])), torch.no_grad():
        plain(**to_device(plain, dict(inputs)), use_cache=False, logits_to_keep=1)
    return recorder.found


class Listener(TextStreamer):
    """Sends both answers so far whenever the one of `side` grows."""

    def __init__(self, processor: Any, side: str, said: dict[str, str], send: Send) -> None:
        super().__init__(getattr(processor, "tokenizer", processor), skip_prompt=True, skip_special_tokens=True)
        self.side, self.said, self.send = side, said, send

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.said[self.side] += text
        self.send(dict(self.said))


def last(news: Iterable[Any]) -> Any:
    """The last item of a stream."""
    return deque(news, maxlen=1)[0]


class Engine:
    """The models, their lock (`alone`), and the index of the large one's last decoder layer (`deepest`)."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self.alone = threading.Lock()
        plain = unwrap_peft(models.model)
        self.deepest = len(family_of(plain).language_model(plain).layers) - 1

    def runnable(self) -> list[str]:
        """Names of the registered methods that run with these models."""
        small = self.models.small is not None
        return [name for name in vlmprune.list_methods() if small or "guide" not in options_of(name)]

    def warm_up(self) -> None:
        """Answer a bundled question, so that the first visitor does not wait for one-time set-up."""
        last(self.ask(*example(), "sgl" if self.models.small is not None else "fastv", keep=0.25))

    def stream(self, work: Callable[[Send], None]) -> Iterator[Any]:
        """Yield what `work(send)` sends, as it is sent; `work` runs in its own thread and holds the lock.

        Closing the iterator stops `work` at its next `send`.
        """
        news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        gone, end = threading.Event(), Future[None]()

        def send(item: Any) -> None:
            if gone.is_set():
                raise _Gone
            news.put(item)

        def body() -> None:
            try:
                with self.alone:
                    if not gone.is_set():  # the listener may have left while this waited for the lock
                        work(send)
                end.set_result(None)
            except BaseException as error:  # raised again in the listener's thread
                end.set_exception(error)
            news.put(end)

        threading.Thread(target=body, name="vlmprune-demo", daemon=True).start()
        try:
            yield from iter(news.get, end)
            end.result()
        finally:
            gone.set()

    def asked(self, question: str | None) -> str:
        """The question with its whitespace normalised; an empty or too long one is refused."""
        text = " ".join((question or "").split())
        if not text:
            raise VlmpruneError("There is no question; write one about the image.")
        if len(text) > LONGEST_QUESTION:
            raise VlmpruneError(f"The question has {len(text):,} characters; use at most {LONGEST_QUESTION:,}.")
        return text

    def ask(
        self, image: Image.Image, question: str, method: str, keep: float, exit_at: float | None = None
    ) -> Iterator[dict[str, str] | AskResult]:
        """Yield both answers so far, by "unpruned" and "pruned", and finally the `AskResult`.

        Options that the method does not take are left out.
        """
        question, takes = self.asked(question), options_of(method)
        given = {"keep": float(keep), "exit_at": exit_at}  # float: the slider's 1 means all tokens, not one token
        pruner = make(method, self.models, **{name: value for name, value in given.items() if name in takes})

        def work(send: Send) -> None:
            models, answers = self.models, []
            said = {"unpruned": "", "pruned": ""}
            send(dict(said))
            for side, made in zip(said, (make("none"), pruner), strict=True):
                with wrap(models.model, made, processor=models.processor) as pruned:
                    listener = Listener(models.processor, side, said, send)
                    answers.append(pruned.ask(image, question, streamer=listener, **GREEDY))
            attention = attention_maps(models.model, prepare(models.processor, image, question))
            unknown = unknown_words(models.processor, question)
            notes = [*([unknown] if unknown else []), *answers[1].report.notes]
            send(AskResult(image, question, answers[0], answers[1], self._small(image, question), attention, notes))

        return self.stream(work)

    def _small(self, image: Image.Image, question: str) -> Small | None:
        """Ask the small model alone, if there is one."""
        models = self.models
        if models.small is None:
            return None
        start = time.perf_counter()
        inputs = prepare(models.small_processor, image, question)
        found = Guide(models.small).answer(dict(inputs), {"max_new_tokens": MAX_NEW_TOKENS}, whole=True)
        assert found.answers is not None and found.confidence is not None and found.consistency is not None
        text = models.small_processor.decode(found.answers[0], skip_special_tokens=True).strip()
        seconds = time.perf_counter() - start
        span = found.layouts[0].images[0]
        importance = found.importance[0][span.positions.to(found.importance[0].device)].cpu()
        return Small(text, found.confidence[0], found.consistency[0], seconds, importance, span)
