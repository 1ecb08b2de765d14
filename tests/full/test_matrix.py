"""The support matrix has an answer for every type, its page shows the record, and its probes see planted faults."""

from __future__ import annotations

import json
from typing import Any

import pytest

import vlmprune
from eval import pages
from tests.full.grids import RECORDS
from tests.full.matrix import NAME, asked, failures
from tests.full.probes import CAPABILITIES, ask
from tests.full.subjects import Subject
from vlmprune.attention.importance import ImportanceObserver
from vlmprune.hf.compatibility import NEWEST
from vlmprune.methods.guided import Guided
from vlmprune.runtime.prefill import Prefill

RUN = "run `python -m tests.full matrix`, then `python -m eval.pages`, and commit the record and the pages"


def record() -> dict[str, Any]:
    return dict(json.loads((RECORDS / f"{NAME}.json").read_text()))


def test_the_record_names_every_type_and_capability() -> None:
    found = record()
    assert {name: one["adapter"] for name, one in found["families"].items()} == vlmprune.list_families(), RUN
    asks = {name: {"title": one.title, "means": one.means} for name, one in CAPABILITIES.items()}
    assert found["capabilities"] == asks, RUN
    assert all(one["answers"].keys() == asks.keys() for one in found["families"].values()), RUN
    assert found["transformers"].startswith(f"{NEWEST}."), RUN


def test_the_record_is_of_a_commit_and_has_no_failure() -> None:
    found = record()
    assert found["failed"] == failures(found["families"]) == []
    assert found["dirty"] is False
    assert len(found["commit"]) == 40


def test_the_pages_show_the_record() -> None:
    for page in ("docs/families.md", "README.md"):
        text = (pages.ROOT / page).read_text()
        assert pages.filled(page, text) == text, RUN


def test_a_refusal_is_a_no_in_its_words_and_a_crash_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject("mllama")
    found = ask(CAPABILITIES["var"], subject)
    assert found.says == "no"
    assert found.why.startswith("VAR is not supported for 'mllama'")
    monkeypatch.setattr("tests.full.matrix.CAPABILITIES", {"video": CAPABILITIES["video"]})
    assert asked("mllama")["answers"]["video"]["says"] == "none"
    monkeypatch.setattr("tests.full.matrix.CAPABILITIES", {"fastv": CAPABILITIES["fastv"]})
    monkeypatch.setattr(Subject, "inputs", lambda self, kind: {}[kind])
    assert failures({"mllama": asked("mllama")}) == ["mllama fastv: KeyError: 'pair'"]


@pytest.mark.parametrize(
    ("capability", "owner", "name", "wrong"),
    [
        ("exact_later", Prefill, "_cos_sin", lambda self, stage, chosen, kwargs, hidden: tuple(
            part[:, : hidden.shape[1]] for part in kwargs["position_embeddings"]
        )),
        ("fastv", vlmprune.FastV, "score", lambda self, prompt: [-own for own in prompt.received]),
        ("guided", Guided, "score", lambda self, prompt: [-own for own in prompt.importance]),
        ("guide", ImportanceObserver, "expect", lambda self, ends, steps: vars(self).update(_ends=[], _steps=0)),
    ],
)  # fmt: skip
def test_planted_faults_are_seen(
    capability: str, owner: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject("qianfan_ocr")
    assert ask(CAPABILITIES[capability], subject).says == "yes"
    monkeypatch.setattr(owner, name, wrong)
    assert ask(CAPABILITIES[capability], subject).says == "differs"
