"""What the library itself answers, to compare the page with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor

import vlmprune
from vlmprune.apps.demo.engine import MAX_NEW_TOKENS, Engine, last


class Setting(NamedTuple):
    """What a visitor chooses."""

    method: str
    keep: float
    exit_at: float | None = None


# "exit" is at any confidence.
SETTINGS = {
    "fastv": Setting("fastv", 0.1),
    "sgl": Setting("sgl", 0.5),
    "exit": Setting("sgl", 0.25, 0.0),
    "uniform": Setting("uniform", 0.3),
}


@cache
def questions() -> list[tuple[Any, str]]:
    from vlmprune.apps.demo.examples import examples

    return list(examples().values())


def result(engine: Engine, *asked: Any) -> Any:
    """What the page shows in the end."""
    return last(engine.ask(*asked))


@dataclass(frozen=True)
class Truth:
    texts: tuple[str, str]
    small: str
    kept: Tensor
    visual: int


def truth(models: Any, picture: Any, question: str, setting: Setting) -> Truth:
    """The answers by `wrap` and `ask`, without any of the demo's own code between."""
    limits = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}
    options: dict[str, Any] = {"keep": setting.keep}
    if setting.method == "sgl":
        options |= {"guide": models.small, "exit_at": setting.exit_at}
    with vlmprune.wrap(models.model, "none", processor=models.processor) as wrapped:
        unpruned = wrapped.ask(picture, question, **limits)
    with vlmprune.wrap(models.model, setting.method, processor=models.processor, **options) as wrapped:
        pruned = wrapped.ask(picture, question, **limits)
    with vlmprune.wrap(models.small, "none", processor=models.processor) as wrapped:
        small = wrapped.ask(picture, question, **limits)
    return Truth((unpruned.text, pruned.text), small.text, pruned.report.kept[0], pruned.report.visual_tokens[0])
