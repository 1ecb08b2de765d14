"""The adapter against the real lmms-eval, where it is installed: found by name, then asked as lmms-eval asks."""

from __future__ import annotations

from typing import Any

import pytest

import vlmprune
from vlmprune import VlmpruneError

pytest.importorskip("lmms_eval", reason="lmms-eval is installed separately")


@pytest.fixture
def model_class() -> Any:
    from lmms_eval.models import MODEL_REGISTRY_V2

    from vlmprune.integrations.lmms_eval import manifest

    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    return MODEL_REGISTRY_V2.get_model_class("vlmprune")


def request(question: str, **options: Any) -> Any:
    from lmms_eval.api.instance import Instance

    metadata = {"task": "toy", "doc_id": 0, "repeats": 1}
    arguments = (question, options, lambda doc: [doc["image"]], 0, "toy", "test")
    return Instance("generate_until", arguments, 0, metadata)


def test_answers_are_those_of_ask(model_class: Any) -> None:
    picture, question = vlmprune.tiny.example()
    model = model_class.create_from_arg_string("method=fastv,keep=0.25", {"batch_size": 1, "device": None})
    model.task_dict = {"toy": {"test": [{"image": picture}]}}
    requests = [request(question, max_new_tokens=8), request(f"<image>\n{question}", until=["."], max_new_tokens=8)]
    answers = model.generate_until(requests)
    large, _, processor = vlmprune.load_tiny()
    with vlmprune.wrap(large, "fastv", keep=0.25, processor=processor) as pruned:
        expected = pruned.ask(picture, question, max_new_tokens=8).text
    assert answers == [expected, expected]
    assert model.pruned.report.kept_tokens == [49]


def test_what_it_cannot_do_it_says(model_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_class(method="none")
    for ask in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(VlmpruneError, match="not supported by vlmprune's adapter"):
            ask([])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(VlmpruneError, match="run one"):
        model_class(method="none")
