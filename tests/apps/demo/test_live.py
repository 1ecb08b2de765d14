"""The keep slider's patches without a model call, the example that the page opens with, and its Python."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vlmprune
from tests.support.grid import either, only_full

from .conftest import need
from .support import questions, result


def _unpacked(mask: str, count: int) -> list[bool]:
    bits = "".join(f"{int(digit, 16):04b}" for digit in mask)
    return [bit == "1" for bit in bits[:count]]


@pytest.mark.parametrize("keep", either([0.3], [0.05, 0.3, 0.65]))
@pytest.mark.parametrize("method", either(["fastv", "sgl", "scope"], ["fastv", "sgl", "scope", "uniform", "divprune"]))
def test_the_slider_shows_what_a_run_would_keep(engine: Any, method: str, keep: float) -> None:
    """Of a run at 0.25, the patches at another budget are those that a run at that budget keeps."""
    picture, question = questions()[0]
    run = result(engine, picture, question, method, 0.25)
    options = {"guide": engine.models.small} if method == "sgl" else {}
    with vlmprune.wrap(engine.models.model, method, processor=engine.models.processor, keep=keep, **options) as wrapped:
        kept = wrapped.ask(picture, question).report.kept[0]
    assert torch.equal(run.budgets[keep].nonzero()[:, 0], kept)


@pytest.mark.parametrize("method", ["fastv", "sgl", "pyramiddrop"])
def test_the_page_gets_the_kept_patches(engine: Any, method: str) -> None:
    from vlmprune.apps.demo.live import live

    run = result(engine, *questions()[0], method, 0.25)
    page = live(run)
    data = json.loads(page.partition('data-live="')[2].partition('"')[0].replace("&#34;", '"'))
    at = data["keeps"].index(0.25)
    kept = [i for i, stays in enumerate(_unpacked(data["masks"][at], 196)) if stays]
    assert kept == run.pruned.report.kept[0].tolist()
    assert data["every"] == (method != "pyramiddrop"), "several stages: one look does not tell"
    left, top, right, bottom = data["cells"][0]
    assert (left, top) == (0, 0)
    assert right == pytest.approx(1 / 14, abs=1e-4) == bottom


def test_watching_leaves_no_trace(engine: Any) -> None:
    from vlmprune.apps.demo.budgets import watched

    pruner = vlmprune.FastV(keep=0.5)
    with watched(pruner) as seen:
        assert "select" in vars(pruner)
    assert seen == []
    assert pruner == vlmprune.FastV(keep=0.5)
    assert "select" not in vars(pruner)


def test_the_examples_are_what_they_say(engine: Any) -> None:
    """The first two are answered rightly, the last one only without pruning."""
    from vlmprune.apps.demo.thumbnails import THUMBNAILS

    found = [engine.example(number) for number in range(len(THUMBNAILS))]
    assert [one.unpruned.text for one in found] == [one.truth for one in THUMBNAILS]
    right = [run.pruned.text == one.truth for run, one in zip(found, THUMBNAILS, strict=True)]
    assert right == [True, True, False]
    assert engine.example(0) is found[0], "made once"


def test_the_result_is_one_sentence(engine: Any) -> None:
    from dataclasses import replace

    from vlmprune.apps.demo.result import in_a_sentence

    run = engine.example(0)
    assert in_a_sentence(replace(run, gain=2.14)) == "Same answer. 75 % fewer tokens, 74 % fewer FLOPs, 2.1x faster."
    for gain in (None, 0.98, 1.02):
        assert "no time saved: " in in_a_sentence(replace(run, gain=gain))
    assert "no time saved (1.4x slower): " in in_a_sentence(replace(run, gain=0.7))
    wrong = engine.example(2)
    assert in_a_sentence(wrong, "5").startswith("Pruning makes the answer wrong: '6' instead of '5'. ")
    assert in_a_sentence(wrong).startswith("Another answer: '6' instead of '5'. ")
    alone = result(engine, *questions()[0], "sgl", 0.25, 0.0)
    assert "answered alone: no visual token reached the large one" in in_a_sentence(alone)


@pytest.mark.parametrize("number", [0, 1])
def test_copy_as_python_runs(engine: Any, number: int) -> None:
    from vlmprune.apps.demo.ask import known
    from vlmprune.apps.demo.engine import MAX_NEW_TOKENS
    from vlmprune.apps.demo.snippet import snippet

    run = engine.example(number)
    example = known(engine, run)
    assert example is not None
    code = snippet(engine.models, example.code, run.question, run.method, MAX_NEW_TOKENS)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "copied", "exec"), {})
    assert out.getvalue().startswith(f"{run.pruned.text}\n")
    assert f"{run.pruned.report.kept_tokens[0]} of 196" in out.getvalue()


@only_full
def test_copy_as_python_of_an_own_image_runs(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmprune.apps.demo.snippet import OWN_IMAGE, snippet

    picture, _ = questions()[2]
    question = 'Is there a "red" star, or isn\'t there?'
    run = result(engine, picture, question, "sgl", 0.5, 0.0)
    picture.save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    code = snippet(engine.models, OWN_IMAGE, question, run.method, 64)
    assert "exit_at=0.0" in code
    scope: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, "copied", "exec"), scope)
    assert scope["answer"].text == run.pruned.text
    assert scope["answer"].report.exited == [True]


@only_full
def test_copy_as_python_of_other_models_runs(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models named by `--model` and `--guide`, with a processor each."""
    from vlmprune.apps.demo.engine import Engine
    from vlmprune.apps.demo.snippet import OWN_IMAGE, snippet
    from vlmprune.harness.models import load_models

    for name, model in (("large", engine.models.model), ("small", engine.models.small)):
        model.save_pretrained(tmp_path / name)
        engine.models.processor.save_pretrained(tmp_path / name)
    other = Engine(load_models(str(tmp_path / "large"), str(tmp_path / "small"), trust_remote_code=False))
    picture, question = questions()[0]
    run = result(other, picture, question, "sgl", 0.25)
    picture.save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(snippet(other.models, OWN_IMAGE, question, run.method, 64), "copied", "exec"), scope)
    assert scope["answer"].text == run.pruned.text
    assert torch.equal(scope["answer"].report.kept[0], run.pruned.report.kept[0])
    assert run.outside == "", "the banner is of the bundled pair alone"


def test_head_map_says_each_heads_fraction(engine: Any) -> None:
    need("gradio")
    from vlmprune.apps.demo.sinks import by_head, opening

    found = opening(engine)
    importance, on_sinks = by_head(found).split("</table>")[:2]
    for page, values in ((importance, found.sample.image_attention), (on_sinks, found.sample.sink_share.nan_to_num())):
        assert page.count("<td") == values.numel()
        for layer, head in ((0, 0), (values.shape[0] - 1, values.shape[1] - 1)):
            assert f"layer {layer}, head {head}: {float(values[layer, head]):.0%}" in page
    assert importance.count("vp-framed") == sum(map(len, found.sample.gated_heads)) > 0
    assert "vp-framed" not in on_sinks


def test_drawing_does_not_mind_another_threads_precision(engine: Any) -> None:
    """Building a model in bf16, as a plan does, changes the default precision of all threads; drawing then raised."""
    from vlmprune.apps.demo.layers import looked
    from vlmprune.apps.demo.live import live

    run = engine.example(0)
    expected = looked(run, 3, "none"), live(run)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = looked(run, 3, "none"), live(run)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected
