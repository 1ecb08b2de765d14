"""Ray's actors answer as one process does, and losing one costs nothing."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlmprune
from tests.support.engines import picture
from vlmprune.errors import VlmpruneError
from vlmprune.ray import Asker, map_actors, map_images

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is an optional extra")
QUESTIONS = ("What colour is the star?", "How many circles are there?")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    import ray

    folder = tmp_path_factory.mktemp("pictures")
    made = []
    for number in range(8):
        picture(number).save(folder / f"{number}.png")
        made.append({"id": number, "image": str(folder / f"{number}.png"), "question": QUESTIONS[number % 2]})
    yield made
    ray.shutdown()


@pytest.fixture(scope="module")
def alone() -> list[str]:
    large, small, processor = vlmprune.load_tiny()
    with vlmprune.wrap(large, vlmprune.SGL(small, keep=0.2), processor=processor) as pruned:
        return [pruned.ask(picture(number), QUESTIONS[number % 2]).text for number in range(8)]


class Mortal(Asker):
    """Dies in its second batch, once in all."""

    def __init__(self, settings: Any, marker: str) -> None:
        super().__init__(settings)
        self.marker, self.calls = Path(marker), 0

    def __call__(self, batch: Any) -> dict[str, Any]:
        self.calls += 1
        if self.calls == 2:
            try:
                self.marker.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


def test_two_actors_are_one_process_even_when_one_dies(rows: list[Any], alone: list[str], tmp_path: Path) -> None:
    got = {row["id"]: row for row in map_images(rows, None, "sgl", keep=0.2, workers=2).iter_rows()}
    assert [got[number]["answer"] for number in range(8)] == alone
    assert '"kept_tokens": [39]' in got[0]["report"]

    settings = {
        "model": None, "guide": None, "method": "sgl", "options": {"keep": 0.2}, "image": "image",
        "question": "question", "max_new_tokens": 64, "trust_remote_code": False,
    }  # fmt: skip
    marker = tmp_path / "died"
    done = map_actors(rows, Mortal, (settings, str(marker)), workers=2).take_all()
    assert marker.exists()
    assert [row["answer"] for row in sorted(done, key=lambda row: row["id"])] == alone


def test_pictures_as_bytes_arrays_and_none_at_all() -> None:
    asker = Asker(
        {"model": None, "guide": None, "method": vlmprune.Uniform(keep=0.5), "options": {}, "image": "image",
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
    [("nothing", {}, "no method"), ("uniform", {"exit_at": 1}, "takes no"), (3, {}, "no name")],
)
def test_bad_methods_are_said_before_ray_starts(method: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(VlmpruneError, match=said):
        map_images([], None, method, **options)
