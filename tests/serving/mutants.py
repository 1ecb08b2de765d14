"""Chat requests that try to make an engine fetch an address, drawn from a seed, and a site that counts who came."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.serving.support import Handler, chat, image_part, served

KEYS = (
    "image_url", "video_url", "audio_url", "input_audio", "input_image", "file", "file_url", "image", "image_pil",
    "image_embeds", "video_embeds", "audio_embeds", "prompt_embeds", "url", "data", "source", "uuid", "tool_reference",
    "refusal", "cache_control", "annotations", "thinking", "media", "href", "$ref", "Image_URL", " image_url", "detail",
)  # fmt: skip
TYPES = (
    "text", "image_url", "video_url", "audio_url", "input_audio", "input_image", "input_text", "output_text", "file",
    "image", "image_embeds", "video_embeds", "audio_embeds", "prompt_embeds", "refusal", "thinking", "tool_reference",
    "", None, 5, ["image_url"], {"type": "image_url"},
)  # fmt: skip
OF_MESSAGES = (
    "name",
    "tool_calls",
    "tool_call_id",
    "task",
    "tools",
    "audio",
    "reasoning",
    "documents",
    "image_url",
    "x",
)
OF_REQUESTS = (
    "mm_processor_kwargs", "media_io_kwargs", "chat_template", "chat_template_kwargs", "documents", "vllm_xargs",
    "kv_transfer_params", "ec_transfer_params", "logits_processors", "structured_outputs", "response_format", "tools",
    "functions", "prediction", "audio", "web_search_options", "input", "prompt", "image_url", "multi_modal_data",
    "stop", "logit_bias", "metadata", "stream_options", "tool_choice", "modalities", "extra_body", "guided_json",
)  # fmt: skip


def nested(rng: random.Random, url: str) -> Any:
    """The address in something that holds it."""
    kinds = [
        lambda: url, lambda: {"url": url}, lambda: [url], lambda: [{"url": url}], lambda: {"url": {"url": url}},
        lambda: {"type": "image_url", "image_url": {"url": url}}, lambda: {"image_url": {"url": url}},
        lambda: {"data": url, "format": "wav"}, lambda: {"file_data": url}, lambda: {"$ref": url},
        lambda: [{"type": "image_url", "image_url": {"url": url}}], lambda: {url: url}, lambda: {"a": {"b": [url]}},
        lambda: {"url": "data:image/png;base64,AAAA", "fallback": url}, lambda: {"image": url.upper()},
    ]  # fmt: skip
    return rng.choice(kinds)()


def mutated_part(rng: random.Random, url: str, good: dict[str, Any]) -> Any:
    kind = rng.randrange(7)
    if kind == 0:  # what vLLM takes for an image whatever its type says
        return {"type": "text", "text": "x", "uuid": rng.choice(["u", 5, [1]]), rng.choice(KEYS): nested(rng, url)}
    if kind == 1:
        return {"type": rng.choice(TYPES), rng.choice(KEYS): nested(rng, url), rng.choice(KEYS): nested(rng, url)}
    if kind == 2:
        return {"type": "text", "text": rng.choice([{"url": url}, [url], {"text": url}, ["x", {"url": url}]])}
    if kind == 3:
        return {**good, rng.choice(KEYS): nested(rng, url)}
    if kind == 4:
        return {**good, "image_url": {**good["image_url"], rng.choice(KEYS): nested(rng, url)}}
    if kind == 5:
        return rng.choice([nested(rng, url), {"type": "image_url", "image_url": nested(rng, url)}, {"url": url}])
    return {rng.choice(["uuid", "name", "detail"]): "u", rng.choice(KEYS): nested(rng, url), "text": "x"}


def mutated_request(rng: random.Random, url: str, good: dict[str, Any]) -> dict[str, Any]:
    """A request of which a part, a message or the request itself has been changed."""
    where = rng.choice(["part", "part", "part", "part", "message", "request", "role"])
    body = chat("What colour is it?", *([good] if rng.random() < 0.3 else []))
    content = body["messages"][0]["content"]
    if where == "part":
        content.insert(rng.randrange(len(content) + 1), mutated_part(rng, url, good))
    elif where == "message":
        role = rng.choice(["user", "assistant", "tool", "system", "developer"])
        extra = {rng.choice(OF_MESSAGES): nested(rng, url) if rng.random() < 0.8 else [nested(rng, url)]}
        body["messages"].insert(0, {"role": role, "content": rng.choice(["x", None, [], content]), **extra})
        if isinstance(extra.get("name"), str):  # a name is a text, which goes on
            body["messages"][0]["name"] = {"url": url}
        for name in ("tool_call_id", "reasoning"):
            if isinstance(extra.get(name), str):
                body["messages"][0][name] = [url]
    elif where == "request":
        name = rng.choice(OF_REQUESTS)
        value = nested(rng, url)
        body[name] = {"url": {"url": url}} if name in ("stop", "metadata", "tool_choice") else value
        if name in ("response_format", "structured_outputs", "tools"):
            schema = {"type": "object", "properties": {"a": {"$ref": url}}}
            body[name] = {
                "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
                "structured_outputs": {"json": schema},
                "tools": [{"type": "function", "function": {"name": "a", "parameters": schema}}],
            }[name]
    else:
        body["messages"].append({"role": rng.choice([url, "user2", "function", ""]), "content": [nested(rng, url)]})
    return body


def requests(url: str, count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Requests in which the address stands wherever an engine may look, except in texts, which are only texts.

    Args:
        url: of a site that nobody may visit.
    """
    rng = random.Random(seed)
    good = image_part("data:image/png;base64,AAAA")
    for number in range(count):
        yield mutated_request(rng, f"{url}/{number}.png", good)


@contextmanager
def counting_site() -> Iterator[tuple[str, list[str]]]:
    """A site on the loopback address, and the paths that were asked of it."""
    hits: list[str] = []

    class Site(Handler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.reply(status=404)

        do_HEAD = do_POST = do_GET

    with served(Site) as address:
        yield address, hits
