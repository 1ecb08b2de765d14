from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch

import vlmprune
from tests.support.grid import only_full
from vlmprune import VlmpruneError

from .support import SETTINGS, Setting, questions, result, truth


@pytest.mark.parametrize("name", SETTINGS)
def test_it_answers_as_the_library_does(engine: Any, name: str) -> None:
    picture, question = questions()[0]
    run = result(engine, picture, question, *SETTINGS[name])
    expected = truth(engine.models, picture, question, SETTINGS[name])
    assert (run.unpruned.text, run.pruned.text) == expected.texts
    assert torch.equal(run.pruned.report.kept[0], expected.kept)
    assert run.small.text == expected.small
    assert [run.alive(i) for i in range(run.layers)][-1] == len(expected.kept)
    assert run.alive(0) >= run.alive(run.layers - 1)
    assert not engine.models.model.__dict__.keys() & {"_vlmprune_handle", "generate"}


def test_pieces_grow_into_the_answer(engine: Any) -> None:
    from vlmprune.apps.demo.engine import AskResult

    picture, question = questions()[0]
    *pieces, run = engine.ask(picture, question, *SETTINGS["fastv"])
    assert isinstance(run, AskResult)
    assert pieces[0].texts == {"unpruned": "", "pruned": ""}
    assert (pieces[0].running, pieces[-1].running) == ("unpruned", ""), "the clocks stop before times are measured"
    for side, answer in (("unpruned", run.unpruned), ("pruned", run.pruned)):
        texts = [piece.texts[side] for piece in pieces]
        assert texts[-1].strip() == answer.text
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
        clock = [piece.seconds[side] for piece in pieces]
        assert clock == sorted(clock)
        assert clock[-1] > 0


def test_attention_maps_are_what_fastv_ranks_by(engine: Any) -> None:
    picture, question = questions()[0]
    run = result(engine, picture, question, *SETTINGS["fastv"])
    best = run.attention[1].topk(len(run.pruned.report.kept[0])).indices.sort().values
    assert torch.equal(best, run.pruned.report.kept[0])
    assert all(0 < float(values.sum()) <= 1.0001 for values in run.attention.values())


@only_full
def test_many_at_once_get_their_own_answers(engine: Any) -> None:
    jobs = [(i, name) for i in range(3) for name in SETTINGS]
    expected = {(i, name): truth(engine.models, *questions()[i], SETTINGS[name]) for i, name in jobs}
    wrong: list[Any] = []

    def visitor(i: int, name: str) -> None:
        run = result(engine, *questions()[i], *SETTINGS[name])
        want = expected[i, name]
        if (run.unpruned.text, run.pruned.text) != want.texts or not torch.equal(run.pruned.report.kept[0], want.kept):
            wrong.append((i, name))

    threads = [threading.Thread(target=visitor, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_who_leaves_frees_the_models(engine: Any) -> None:
    picture, question = questions()[0]
    news = engine.ask(picture, question, *SETTINGS["fastv"])
    next(news)
    news.close()
    assert result(engine, picture, question, *SETTINGS["fastv"]).unpruned.text
    assert engine.models.model.forward.__name__ == "forward"


def test_an_error_reaches_the_listener_and_frees_the_models(engine: Any) -> None:
    def broken(send: Any) -> None:
        send(1)
        raise VlmpruneError("no")

    news = engine.stream(broken)
    assert next(news) == 1
    with pytest.raises(VlmpruneError, match="no"):
        next(news)
    assert list(engine.stream(lambda send: send(2))) == [2]


@pytest.mark.parametrize(
    ("question", "setting", "says"),
    [
        ("  ", {"method": "fastv", "keep": 0.5}, "no question"),
        (None, {"method": "fastv", "keep": 0.5}, "no question"),
        ("what " * 1000, {"method": "fastv", "keep": 0.5}, "characters"),
        ("What?", {"method": "fast", "keep": 0.5}, "no method 'fast'"),
        ("What?", {"method": "fastv", "keep": 0.0}, "keep=0.0"),
        ("What?", {"method": "sgl", "keep": 0.5, "exit_at": 7.0}, "exit_at must be a number from 0 to 1 .*got 7.0"),
    ],
)
def test_bad_input_is_said_in_a_sentence(engine: Any, question: Any, setting: dict[str, Any], says: str) -> None:
    with pytest.raises(VlmpruneError, match=says):
        result(engine, questions()[0][0], question, *Setting(**setting))


def test_unknown_words_are_said(engine: Any) -> None:
    run = result(engine, questions()[0][0], "What xylophone is the star?", *SETTINGS["fastv"])
    assert "'xylophone'" in run.notes[0]


def test_the_small_model_is_as_sure_as_sgl_says(engine: Any) -> None:
    picture, question = questions()[0]
    run = result(engine, picture, question, *SETTINGS["sgl"])
    report = run.pruned.report
    assert run.small.sure == pytest.approx((report.confidence[0] + report.consistency[0]) / 2, abs=1e-5)
    assert run.pruned.report.exited == [False]
    gone = result(engine, picture, question, *SETTINGS["exit"])
    assert gone.pruned.report.exited == [True]
    assert gone.pruned.text == run.small.text
    assert [gone.alive(i) for i in range(gone.layers)] == [0] * gone.layers


def test_a_large_model_alone_is_enough(engine: Any) -> None:
    from vlmprune.apps.demo.ask import pruners
    from vlmprune.apps.demo.compare import methods
    from vlmprune.apps.demo.engine import Engine
    from vlmprune.harness.models import Models

    models = engine.models
    alone = Engine(Models("one", models.model, models.processor))
    assert "sgl" in pruners(engine)
    assert "sgl" not in pruners(alone)
    assert not any(name.startswith("sgl") for name in methods(alone))
    picture, question = questions()[0]
    run = result(alone, picture, question, *SETTINGS["fastv"])
    assert run.small is None
    assert "small" not in run.to_dict()


def test_every_method_is_offered(engine: Any) -> None:
    from vlmprune.apps.demo.compare import methods

    assert set(methods(engine)) - {"sgl + exit"} == set(vlmprune.list_methods()) - {"none"}
