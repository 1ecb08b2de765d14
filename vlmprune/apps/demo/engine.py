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
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import TextStreamer

import vlmprune

from ...api import Answer, unwrap_peft, wrap
from ...attention.observer import AttentionObserver
from ...attention.probe import AttentionCall
from ...errors import VlmpruneError
from ...families import family_of
from ...flow.locate import last_valid
from ...flow.prompt_state import PromptState
from ...flow.score import visual_columns
from ...guide.runner import Guide
from ...harness.measure import MethodRun, faster
from ...harness.models import Models, make, options_of
from ...hf.arguments import to_device
from ...inputs.chat import prepare, unknown_words
from ...inputs.video import Clip
from ...methods.none import Unpruned
from ...runtime.call_lock import attached
from ...runtime.session import Session
from .budgets import kept_at, watched
from .result import CLEAR, AskResult, Progress, Small
from .thumbnails import THUMBNAILS
from .turns import TurnLock, in_words
from .world import COMMAND, outside

LONGEST_QUESTION = 2000  # characters
MAX_NEW_TOKENS = 64
QUICK = 0.6  # seconds of both sides, up to which they are asked again
RUNS = 5  # of each side, for their times
GREEDY: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "num_beams": 1}
Send = Callable[[Any], None]


class _Gone(BaseException):
    """The listener left. A BaseException, so that the running work does not catch it."""


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
    """Calls `hear` with every piece of an answer."""

    def __init__(self, processor: Any, hear: Callable[[str], None]) -> None:
        super().__init__(getattr(processor, "tokenizer", processor), skip_prompt=True, skip_special_tokens=True)
        self.hear = hear

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.hear(text)


def takes_clips(processor: Any) -> bool:
    """Whether a processor has a part for videos."""
    return getattr(processor, "video_processor", None) is not None


def last(news: Iterable[Any]) -> Any:
    """The last item of a stream."""
    return deque(news, maxlen=1)[0]


class Engine:
    """The models, their lock (`alone`), and the index of the large one's last decoder layer (`deepest`).

    `runs`: how often each side of a quick question is asked for its time.
    """

    def __init__(self, models: Models, *, runs: int = RUNS) -> None:
        self.models, self.runs = models, runs
        self.alone = TurnLock()
        self._opened: dict[str, Any] = {}
        self._opening, self._locks = threading.Lock(), dict[str, threading.Lock]()
        plain = unwrap_peft(models.model)
        self.deepest = len(family_of(plain).language_model(plain).layers) - 1

    def runnable(self) -> list[str]:
        """Names of the registered methods that run with these models."""
        small = self.models.small is not None
        return [name for name in vlmprune.list_methods() if small or "guide" not in options_of(name)]

    def check_clip(self, media: Any) -> None:
        """Refuse a clip where the model takes none."""
        models = self.models
        if isinstance(media, Clip) and not (
            takes_clips(models.processor) and family_of(unwrap_peft(models.model)).video_grids is not None
        ):
            raise VlmpruneError(f"{models.name} takes no clips; start the demo with a model that does ({COMMAND}).")

    def opened(self, name: str, make: Callable[[], Any]) -> Any:
        """What a tab or an example opens with: made once, then remembered."""
        with self._opening:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._opened:
                self._opened[name] = make()
            return self._opened[name]

    def method_of(self, number: int) -> str:
        """The method of a thumbnail, where it runs with these models."""
        wanted = THUMBNAILS[number].method
        if wanted in self.runnable() and self.opened(f"fits {wanted}", lambda: self._fits(wanted)):
            return wanted
        return "fastv"

    def _fits(self, name: str) -> bool:
        """Whether the large model takes a method: VisionZip, for example, wants a tower whose tokens are patches."""
        try:
            with self.alone.wait(lambda before: None), wrap(self.models.model, make(name, self.models)):
                return True
        except VlmpruneError:
            return False

    def example(self, number: int) -> AskResult:
        """The answers to a thumbnail's question, made once."""
        thumbnail = THUMBNAILS[number]
        asked = *thumbnail.asked(), self.method_of(number), thumbnail.keep
        found: AskResult = self.opened(f"example {number}", lambda: last(self.ask(*asked)))
        return found

    def warm_up(self) -> None:
        """Answer the first example, which also does the one-time set-up that the first visitor would wait for."""
        self.example(0)

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
                with self.alone.wait(lambda before: send(in_words(before))):
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
        self, image: Image.Image | Clip, question: str, method: str, keep: float, exit_at: float | None = None
    ) -> Iterator[str | Progress | AskResult]:
        """Yield the place in the queue, `Progress` as the answers grow, and finally the `AskResult`.

        Options that the method does not take are left out.
        """
        self.check_clip(image)
        question, takes = self.asked(question), options_of(method)
        given = {"keep": float(keep), "exit_at": exit_at}  # float: the slider's 1 means all tokens, not one token
        pruner = make(method, self.models, **{name: value for name, value in given.items() if name in takes})
        return self.stream(lambda send: send(self._both(image, question, pruner, send)))

    def _both(self, image: Image.Image | Clip, question: str, pruner: Any, send: Send) -> AskResult:
        """Both sides' answers, streamed; then their times and everything that is shown beside them."""
        models, unknown = self.models, unknown_words(self.models.processor, question)
        why = outside(models, image, question)
        methods = {"unpruned": make("none"), "pruned": pruner}
        texts, seconds = dict.fromkeys(methods, ""), dict.fromkeys(methods, 0.0)
        runs = {side: MethodRun(models.model, models.processor, made, side) for side, made in methods.items()}
        send(Progress(dict(texts), dict(seconds), "unpruned", why))
        with watched(pruner) as seen:
            for side, made in methods.items():
                start = time.perf_counter()

                def hear(text: str, side: str = side, start: float = start) -> None:
                    texts[side] += text
                    seconds[side] = time.perf_counter() - start
                    send(Progress(dict(texts), dict(seconds), side, why))

                with wrap(models.model, made, processor=models.processor) as pruned:
                    answer = pruned.ask(image, question, streamer=Listener(models.processor, hear), **GREEDY)
                runs[side].answers.append([answer.text])
                runs[side].reports.append(answer.report)
        send(Progress(dict(texts), dict(seconds), "", why))  # both clocks stop
        gain = self._timed(list(runs.values()), image, question)
        full, part = (Answer(text, report) for (text,), report in (run.typical() for run in runs.values()))
        budgets = kept_at(pruner, seen, part.report.images[0][0])
        attention = attention_maps(models.model, prepare(models.processor, image, question))
        notes = [*([unknown] if unknown else []), *part.report.notes]
        small = self._small(image, question)
        number = len(runs["pruned"].reports)
        return AskResult(image, question, pruner, full, part, small, attention, notes, budgets, gain, number, why)

    def _timed(self, sides: list[MethodRun], image: Image.Image | Clip, question: str) -> float | None:
        """Ask again in turns where that is quick, and say how many times as fast the second side is; None: unclear."""
        first, second = (run.reports[0].seconds["total"] for run in sides)
        if first + second > QUICK:
            gain = first / second
            return gain if max(gain, 1 / gain) >= CLEAR else None
        for run in sides:
            # The streamed run also waited for its listener.
            run.answers.clear()
            run.reports.clear()
        for _ in range(self.runs):
            for run in sides:
                answers, report = run.answer([image], [question], **GREEDY)
                run.answers.append(answers)
                run.reports.append(report)
        return faster(*sides)

    def _small(self, image: Image.Image | Clip, question: str) -> Small | None:
        """Ask the small model alone, if there is one."""
        models = self.models
        if models.small is None or (isinstance(image, Clip) and not takes_clips(models.small_processor)):
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
