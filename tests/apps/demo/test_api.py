"""The demo from Python, by Gradio's client; and what a hostile client asks of it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.grid import only_full

from .conftest import PATIENCE, ROOT, Served
from .pictures import bomb
from .support import SETTINGS, questions, truth


@pytest.fixture(scope="module")
def client(demo: Served) -> Any:
    from gradio_client import Client

    return Client(demo.url, verbose=False)


@pytest.fixture
def picture(tmp_path: Path) -> Any:
    from gradio_client import handle_file

    questions()[2][0].save(tmp_path / "scene.png")
    return handle_file(str(tmp_path / "scene.png"))


@only_full
def test_ask(client: Any, engine: Any, picture: Any) -> None:
    shown, question = questions()[2]
    for name in ("fastv", "exit"):
        setting = SETTINGS[name]
        record = client.predict(picture, question, setting.method, setting.keep, setting.exit_at, api_name="/ask")
        expected = truth(engine.models, shown, question, setting)
        assert (record["unpruned"]["text"], record["pruned"]["text"]) == expected.texts
        assert torch.equal(torch.tensor(record["pruned"]["report"]["kept"][0], dtype=torch.long), expected.kept)
        assert record["small"]["text"] == expected.small


@only_full
def test_unknown_words_are_said_on_the_page_and_not_on_the_terminal(client: Any, demo: Served, picture: Any) -> None:
    setting = SETTINGS["fastv"]
    client.predict(picture, "zqxv zqxw zqxv?", setting.method, setting.keep, setting.exit_at, api_name="/ask")
    assert "Warning" not in demo.log.read_text()


@only_full
def test_all_tabs(client: Any, picture: Any) -> None:
    question = questions()[2][1]
    rows = client.predict(picture, question, 0.25, api_name="/compare")
    assert rows[0]["method"] == "unpruned"
    assert all(row["report"] for row in rows)
    sinks = client.predict(picture, question, 0.4, 0.5, api_name="/sinks")
    assert set(sinks) == {"sinks", "without_var", "with_var", "first_token", "notes"}
    caption = client.predict(picture, 1, True, api_name="/caption")
    assert caption["patches"]
    plan = client.predict("LLaVA-1.5 7B", "a100", 0.25, 0, 64, 32, api_name="/plan")
    assert plan["prompt"]["visual"] == 576
    assert 13.5e9 < plan["weights"] < 14.5e9
    assert all(row["speed_up"] > 1 for row in plan["rows"][1:])


@only_full
def test_errors_are_sentences(client: Any, picture: Any, tmp_path: Path) -> None:
    from gradio_client import handle_file

    (tmp_path / "words.png").write_text("words")
    calls = [
        ((picture, " ", "fastv", 0.5, None), "There is no question"),
        ((picture, "What?", "sgl", 0.5, 3.0), "exit_at must be a number from 0 to 1 or None, got 3.0"),
        ((None, "What?", "fastv", 0.5, None), "There is no image"),
        ((handle_file(str(bomb(tmp_path, 6000))), "What?", "fastv", 0.5, None), "'bomb.png' has more than"),
        ((handle_file(str(tmp_path / "words.png")), "What?", "fastv", 0.5, None), "'words.png' is not an image"),
    ]
    for arguments, says in calls:
        with pytest.raises(Exception, match=says) as caught:
            client.predict(*arguments, api_name="/ask")
        assert "Traceback" not in str(caught.value)
        assert str(ROOT) not in str(caught.value)


@only_full
def test_only_the_api_is_public(client: Any) -> None:
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/ask", "/ask_clip", "/compare", "/sinks", "/caption", "/plan"}


def answered(request: urllib.request.Request | str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@only_full
@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/proc/self/environ",
        "../../../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        str(ROOT / "pyproject.toml"),
        "pyproject.toml",
        "demo.log",
    ],
)
def test_files_outside_are_not_given_out(demo: Served, path: str) -> None:
    status, body = answered(f"{demo.url}gradio_api/file={path}")
    assert status in (403, 404, 400)
    assert b"root:" not in body
    assert b"setuptools" not in body
    assert b"Traceback" not in body
    assert demo.log.exists(), "the last one is beside the uploads"


@only_full
def test_a_file_of_the_server_is_no_picture(demo: Served) -> None:
    """What a browser would send, with a path or an address of the attacker's own in it."""
    outside = ROOT / "vlmprune" / "tiny" / "example.png"
    for path in (str(outside), "/etc/passwd", "http://127.0.0.1:1/x.png", "https://example.invalid/x.png"):
        data = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "x.png"}
        status, body = call(demo, "ask", [data, "What colour is the star?", "fastv", 0.5, None])
        assert status == 200
        assert b"unpruned" not in body
        assert b"event: error" in body
        assert b"Traceback" not in body


def call(demo: Served, name: str, data: list[Any]) -> tuple[int, bytes]:
    request = urllib.request.Request(
        f"{demo.url}gradio_api/call/{name}",
        json.dumps({"data": data}).encode(),
        {"Content-Type": "application/json"},
    )
    status, body = answered(request)
    if status != 200:
        return 200, b"event: error " + body
    return answered(f"{demo.url}gradio_api/call/{name}/{json.loads(body)['event_id']}")
