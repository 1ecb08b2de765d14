"""`python -m tests.full matrix`: ask every type of `list_families()` what it can do, and write the record of it.

The record (tests/full/records/matrix.json) is what the page docs/families.md shows; tests/full/probes.py has the
questions. tests/test_full_records.py fails where a type has none.
"""

from __future__ import annotations

import datetime
import time
import traceback
from dataclasses import asdict
from typing import Any

import vlmprune
from eval.provenance import provenance, write_record
from tests.full.grids import RECORDS
from tests.full.probes import CAPABILITIES, ask
from tests.full.subjects import Subject

NAME = "matrix"
SAYS = "every type of list_families(): what it supports, for docs/families.md"


def asked(model_type: str) -> dict[str, Any]:
    """A type's answers by capability; a probe that stops for another reason than a refusal has failed."""
    subject, answers = Subject(model_type), {}
    for name, capability in CAPABILITIES.items():
        try:
            answers[name] = asdict(ask(capability, subject))
        except Exception as error:
            traceback.print_exc()
            answers[name] = {"says": "failed", "why": f"{type(error).__name__}: {error}", "worst": None}
    return {"adapter": vlmprune.list_families()[model_type], "answers": answers}


def failures(families: dict[str, Any]) -> list[str]:
    """Answers that are faults of the package or of its tests."""
    return [
        f"{family} {name}: {answer['why']}"
        for family, found in families.items()
        for name, answer in found["answers"].items()
        if answer["says"] in ("failed", "differs")
    ]


def run(types: list[str]) -> int:
    """Ask and print; of all types, write the record too. 1 where something failed."""
    head, start, families = provenance(), time.process_time(), {}
    for model_type in types or sorted(vlmprune.list_families()):
        families[model_type] = asked(model_type)
        said = {name: answer["says"] for name, answer in families[model_type]["answers"].items()}
        print(f"{model_type:24}", *(f"{name}={answer}" for name, answer in said.items()), flush=True)
    failed = failures(families)
    for line in failed:
        print(line)
    if not types:
        record = {
            "grid": NAME,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            **{key: head[key] for key in ("commit", "dirty", "transformers", "torch", "machine")},
            "cpu_minutes": round((time.process_time() - start) / 60, 1),
            "failed": failed,
            "capabilities": {name: {"title": one.title, "means": one.means} for name, one in CAPABILITIES.items()},
            "families": families,
        }
        write_record(record, RECORDS / f"{NAME}.json")
        print(f"{NAME}: {len(families)} types, record in tests/full/records/{NAME}.json; python -m eval.pages shows it")
    return 1 if failed else 0
