"""Many threads on one model: every call gets its own answer and its own report, whatever the other threads do."""

from __future__ import annotations

import contextlib
import copy
import io
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

import vlmprune
from tests.support.grid import few
from tests.support.running import outside, shared
from tests.support.tiny_families import build, make_inputs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
QUESTIONS = ("What colour is the star?", "How many circles are there?", "Is there a square?", "What shape is red?")


@pytest.fixture(autouse=True)
def _switching() -> Iterator[None]:
    """Threads take turns every few instructions, so that what can go wrong does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@dataclass
class Together:
    """Threads that run at once, and what they raised."""

    errors: list[BaseException] = field(default_factory=list)

    def run(self, *works: Callable[[], None]) -> list[BaseException]:
        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:
                self.errors.append(error)

        threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=240)
        assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"
        return self.errors


def picture(i: int) -> Image.Image:
    drawn = Image.new("RGB", (112, 112), (i * 37 % 256, i * 91 % 256, i * 53 % 256))
    box = (i * 7 % 60, i * 11 % 60, i * 7 % 60 + 40, i * 11 % 60 + 30)
    ImageDraw.Draw(drawn).rectangle(box, fill=(i * 71 % 256, i * 29 % 256, i * 13 % 256))
    return drawn


def told(report: vlmprune.Report) -> tuple[Any, ...]:
    """What two reports of the same call have in common: everything but the time."""
    record = report.to_dict()
    record.pop("seconds")
    return tuple(sorted((name, str(value)) for name, value in record.items()))


@pytest.mark.parametrize("name", few(["sgl", "fastv"], 2))
def test_every_answer_and_every_report_is_its_own(name):
    """8 threads with questions and pictures of their own."""
    large, small, processor = vlmprune.load_tiny()
    # About half of these questions exit.
    method = vlmprune.FastV(keep=0.2) if name == "fastv" else vlmprune.SGL(small, keep=0.2, exit_at=0.9985)
    jobs = [(picture(i), QUESTIONS[i % len(QUESTIONS)]) for i in range(24)]
    with vlmprune.wrap(large, method, processor=processor) as pruned:

        def ask(i: int) -> vlmprune.Answer:
            return pruned.ask(*jobs[i], max_new_tokens=3)

        alone = [ask(i) for i in range(len(jobs))]
        got: dict[int, vlmprune.Answer] = {}
        last: dict[int, vlmprune.Report] = {}

        def work(thread: int) -> None:
            for i in range(thread, len(jobs), 8):
                got[i] = ask(i)
                last[i] = pruned.report

        assert not Together().run(*(lambda t=t: work(t) for t in range(8)))
    assert len({told(answer.report) for answer in alone}) == len(jobs)  # or a wrong one would not be seen
    if name == "sgl":
        assert 4 < sum(answer.report.exited == [True] for answer in alone) < 20
    for i, answer in enumerate(alone):
        assert got[i].text == answer.text
        assert told(got[i].report) == told(answer.report)
        assert last[i] is got[i].report


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_forwards_and_generate_at_once(family):
    """Outputs of both carry their report; a thread that called nothing reads the last of any."""
    model = shared(family)
    prompts = [make_inputs(model, text_lengths=(5 + i,), images=(1 + i % 2,), seed=i) for i in range(6)]
    with vlmprune.wrap(model, "fastv", keep=0.4) as pruned, torch.no_grad():

        def forward(i: int) -> tuple[Any, Any]:
            out = model(**prompts[i])
            return out.logits, out.report

        def generate(i: int) -> tuple[Any, Any]:
            out = model.generate(**prompts[i], max_new_tokens=4, do_sample=False)
            return out, out.report

        def rich(i: int) -> tuple[Any, Any]:
            out = model.generate(**prompts[i], max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
            return out.sequences, out.report

        ways = (forward, generate, rich)
        alone = {(w, i): way(i) for w, way in enumerate(ways) for i in range(6)}
        wrong: list[tuple[int, int]] = []

        def work(thread: int) -> None:
            for turn in range(9):
                key = ((thread + turn) % 3, (thread * 2 + turn) % 6)
                out, report = ways[key[0]](key[1])
                own = pruned.report is report and told(report) == told(alone[key][1])
                if not (own and torch.equal(out, alone[key][0])):
                    wrong.append(key)

        assert not Together().run(*(lambda t=t: work(t) for t in range(6)))
        assert not wrong
        seen: list[vlmprune.Report] = []
        assert not Together().run(lambda: seen.append(pruned.report))
        assert len(seen) == 1
        mine = model(**prompts[0]).report
        assert not Together().run(lambda: model(**prompts[1]))
        assert pruned.report is mine


def test_a_later_turn_has_the_report_of_its_own_prompt():
    """Two conversations on two caches: a step of the first adds its time to the first's report."""
    model = shared("llava")
    one, other = (make_inputs(model, text_lengths=(5 + i,), images=(1 + i,)) for i in range(2))
    step = {"input_ids": torch.tensor([[20]])}
    with vlmprune.wrap(model, "random", keep=0.4) as pruned, torch.no_grad():
        first, second = model(**one, use_cache=True), model(**other, use_cache=True)
        assert [first.report.visual_tokens, second.report.visual_tokens] == [[9], [18]]
        later = model(**step, past_key_values=first.past_key_values)
        assert later.report is first.report is pruned.report
        assert "decode" in first.report.seconds
        assert "decode" not in second.report.seconds


def test_a_call_that_fails_leaves_the_report_of_the_one_before():
    model = shared("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, "random", keep=0.4) as pruned:
        report = model.generate(**inputs, max_new_tokens=2).report
        broken = {**inputs, "pixel_values": inputs["pixel_values"][:1]}
        for call in (model, model.generate):
            with pytest.raises((ValueError, RuntimeError)):
                call(**broken)
            assert pruned.report is report


def test_outputs_are_saved_without_their_report():
    model = shared("llava")
    with vlmprune.wrap(model, "random", keep=0.4):
        out = model.generate(**make_inputs(model), max_new_tokens=2)
    file = io.BytesIO()
    torch.save(out, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), out)
    assert told(copy.deepcopy(out).report) == told(out.report)


def test_off_beside_running_calls():
    """A thread within `off()` gets the plain model's logits, all others pruned ones, at the same time."""
    model = build("llava")
    inputs = make_inputs(model)
    with torch.no_grad():
        plain = model(**inputs).logits
        with vlmprune.wrap(model, "random", keep=0.3) as pruned:
            short = model(**inputs).logits
            wrong: list[str] = []

            def calling() -> None:
                for _ in range(12):
                    if not torch.equal(model(**inputs).logits, short):
                        wrong.append("on")
                    if pruned.generate(**inputs, max_new_tokens=2).report.kept_tokens != [3, 3, 3]:
                        wrong.append("generate")

            def off() -> None:
                for _ in range(12):
                    with pruned.off():
                        if not torch.equal(model(**inputs).logits, plain):
                            wrong.append("off")
                        if hasattr(model.generate(**inputs, max_new_tokens=2), "report"):
                            wrong.append("generate off")

            assert not Together().run(calling, calling, calling, off, off)
            assert not wrong
            assert torch.equal(model(**inputs).logits, short)


@pytest.mark.parametrize("again", [False, True], ids=["unwrap", "wrap again"])
def test_taken_off_while_others_run(again):
    """Every call gets the pruned model, the plain one or the newer wrap as a whole, or is told to call again."""
    model = build("llava")
    inputs = make_inputs(model)
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
    with torch.no_grad():
        allowed = [model(**inputs).logits]
        before = outside(model)
        for keep in (0.3, 0.6):
            with vlmprune.wrap(model, "random", keep=keep):
                allowed.append(model(**inputs).logits)
        prompt = {name: value for name, value in inputs.items() if name != "labels"}
        for _ in range(3):
            pruned = vlmprune.wrap(model, "random", keep=0.3)
            stop, wrong = threading.Event(), []

            def calling(stop: threading.Event = stop, wrong: list[str] = wrong) -> None:
                while not stop.is_set():
                    with contextlib.suppress(vlmprune.InactiveHandleError):
                        out = model(**inputs)
                        if out.loss is None or not any(
                            out.logits.shape == one.shape and torch.equal(out.logits, one) for one in allowed
                        ):
                            wrong.append("forward")
                    out = model.generate(**prompt, max_new_tokens=2)
                    if hasattr(out, "report") and out.report.kept_tokens not in ([3] * 3, [5] * 3):
                        wrong.append("generate")

            def asking(pruned: vlmprune.PrunedModel = pruned, wrong: list[str] = wrong) -> None:
                with contextlib.suppress(vlmprune.InactiveHandleError):
                    while True:
                        if pruned.generate(**prompt, max_new_tokens=2).report.kept_tokens != [3] * 3:
                            wrong.append("handle")

            def taking(stop: threading.Event = stop, pruned: vlmprune.PrunedModel = pruned) -> None:
                try:
                    for _ in range(4):
                        model(**inputs)
                    newer = vlmprune.wrap(model, "random", keep=0.6) if again else pruned
                    pruned.unwrap()
                    for _ in range(4):
                        model(**inputs)
                    newer.unwrap()
                finally:
                    stop.set()

            errors = Together().run(calling, calling, asking, taking)
            assert not errors, errors
            assert not wrong
    assert outside(model) == before


def test_an_exception_in_one_thread():
    model = shared("llava")
    inputs = make_inputs(model)
    broken = {**inputs, "pixel_values": inputs["pixel_values"][:1]}
    raised: list[Exception] = []
    with vlmprune.wrap(model, "fastv", keep=0.4):
        alone = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        wrong: list[Any] = []

        def failing() -> None:
            for call in (model, model.generate) * 5:
                try:
                    call(**broken)
                except (ValueError, RuntimeError) as error:
                    raised.append(error)

        def calling() -> None:
            for _ in range(8):
                out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
                if not torch.equal(out, alone) or told(out.report) != told(alone.report):
                    wrong.append(out)

        assert not Together().run(failing, calling, calling)
    assert len(raised) == 10
    assert not wrong


@pytest.mark.parametrize("call", ["forward", "base", "generate"])
def test_an_interrupt_lets_the_others_in(call):
    """Ctrl-C in the middle of a forward, and the thread that it hit lives on without another call."""
    model = build("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, "fastv", keep=0.4):
        alone = model(**inputs).logits
        pressed = threading.Event()

        def interrupt(module: Any, args: Any) -> None:
            if threading.current_thread() is threading.main_thread() and not pressed.is_set():
                pressed.set()
                raise KeyboardInterrupt

        handle = model.model.language_model.layers[2].register_forward_pre_hook(interrupt)
        target = {"forward": model, "base": model.model, "generate": model.generate}[call]
        with pytest.raises(KeyboardInterrupt) as caught:
            target(**inputs)
        got: list[Any] = []
        assert not Together().run(lambda: got.append(model(**inputs)))
        handle.remove()
        assert torch.equal(got[0].logits, alone)
        assert torch.equal(model(**inputs).logits, alone)
        assert caught.value is not None  # its traceback, and the frames in it, were alive all the while


def test_two_sessions_on_one_model_do_not_wait_for_each_other():
    """The oracle's guide is the model itself, and `find_sinks` puts a second session on it."""
    model = shared("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, "fastv-oracle", keep=0.4), torch.no_grad():
        alone = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        forward = model(**inputs).logits
        wrong: list[str] = []

        def calling() -> None:
            for _ in range(4):
                if not torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), alone):
                    wrong.append("generate")
                if not torch.equal(model(**inputs).logits, forward):
                    wrong.append("forward")

        def finding() -> None:
            for _ in range(4):
                vlmprune.find_sinks(model, **inputs)

        assert not Together().run(calling, calling, finding)
        assert not wrong


def test_a_guide_that_others_use_alone():
    """Another thread asks the guide itself while it ranks; neither sees the other's prompt."""
    large, small, processor = vlmprune.load_tiny()
    with vlmprune.wrap(large, vlmprune.SGL(small, keep=0.2), processor=processor) as pruned:
        prompts = [processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image", "image": picture(i)}, {"type": "text", "text": text}]}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        ) for i, text in enumerate(QUESTIONS[:3])]  # fmt: skip
        with torch.no_grad():
            alone = small(**prompts[0]).logits
        guided = [pruned.ask(picture(i), QUESTIONS[i], max_new_tokens=3) for i in range(3)]
        wrong: list[str] = []

        def asking() -> None:
            for i in (0, 1, 2) * 3:
                answer = pruned.ask(picture(i), QUESTIONS[i], max_new_tokens=3)
                if told(answer.report) != told(guided[i].report):
                    wrong.append("guided")

        def small_alone() -> None:
            with torch.no_grad():
                for _ in range(20):
                    if not torch.equal(small(**prompts[0]).logits, alone):
                        wrong.append("small")

        assert not Together().run(asking, small_alone)
    assert not wrong


def test_a_refused_forward_gives_its_turn_back():
    """Called without the module around it, no frame tells that it is over."""
    model = shared("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, "random", keep=0.5):
        with pytest.raises(vlmprune.VlmpruneError, match="video"):
            model.forward(**inputs, pixel_values_videos=torch.zeros(1, 3, 12, 12))
        assert not Together().run(lambda: model(**inputs))
