"""Ray's actors answer as one process does, and losing one costs nothing."""

from __future__ import annotations

import io
import os
import signal
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import vlmprune
from tests.support.engines import picture
from tests.support.grid import only_full
from vlmprune.errors import VlmpruneError
from vlmprune.integrations.ray import Asker, map_images

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is an optional extra")
QUESTIONS = ("What colour is the star?", "How many circles are there?")


@dataclass(frozen=True)
class Mortal(vlmprune.Uniform):
    """Kills its process at the second picture that it sees there, once in all."""

    marker: str = ""
    seen: ClassVar[list[int]] = []

    def select(self, prompt: Any) -> Any:
        self.seen.append(1)
        if len(self.seen) == 2 and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().select(prompt)


@only_full  # a cluster of two actors, one of which is killed: a minute of both cores
def test_two_actors_are_one_process_even_when_one_dies(tmp_path: Path) -> None:
    import ray

    rows = []
    for number in range(8):
        picture(number).save(tmp_path / f"{number}.png")
        rows.append({"id": number, "image": str(tmp_path / f"{number}.png"), "question": QUESTIONS[number % 2]})
    large, _, processor = vlmprune.load_tiny()
    with vlmprune.wrap(large, vlmprune.Uniform(keep=0.2), processor=processor) as pruned:
        alone = [pruned.ask(picture(number), QUESTIONS[number % 2]).text for number in range(8)]
    marker = tmp_path / "died"
    try:
        done = map_images(rows, None, Mortal(keep=0.2, marker=str(marker)), workers=2).take_all()
    finally:
        ray.shutdown()
    assert marker.exists()
    assert [row["answer"] for row in sorted(done, key=lambda row: row["id"])] == alone
    assert {row["error"] for row in done} == {""}


def test_pictures_as_bytes_arrays_and_none_at_all() -> None:
    asker = Asker(
        {"model": None, "guide": None, "method": "sgl", "options": {"keep": 0.2}, "image": "image",
         "question": "question", "max_new_tokens": 8, "trust_remote_code": False}
    )  # fmt: skip
    buffer = io.BytesIO()
    picture(0).save(buffer, "png")
    images = [buffer.getvalue(), np.asarray(picture(0)), "no/such/file.png", b"no picture", 5]
    got = asker({"image": images, "question": [QUESTIONS[0]] * 5})
    assert got["answer"][0] == got["answer"][1] != ""
    assert got["error"][:2] == ["", ""]
    assert all(got["error"][2:])
    assert got["answer"][2:] == [""] * 3


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [("nothing", {}, "no method"), ("uniform", {"exit_at": 1}, "takes no"), (3, {}, "must be a name")],
)
def test_bad_methods_are_said_before_ray_starts(method: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(VlmpruneError, match=said):
        map_images([], None, method, **options)
