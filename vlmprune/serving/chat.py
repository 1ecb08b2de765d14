"""Chat requests from outside: read within limits, every image where it says, nothing fetched that was not allowed."""

from __future__ import annotations

import base64
import binascii
import copy
import io
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import VlmpruneError
from ..flow.select import check_keep
from ..pictures import decoded

if TYPE_CHECKING:
    from PIL import Image

# Where every field is one of these, an answer that the guide gave greedily is what was asked for.
_PLAIN = {
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stream",
    "stream_options", "user", "n", "vlmprune",
}  # fmt: skip


class Refused(VlmpruneError):
    """A request that is answered with an error: `status` is HTTP's."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What one client may ask of everybody's server.

    `body`: bytes of a request. `pixels`: of an image. `images`: in a request. `requests`: in the house at once; more
    are told to come back. `tokens`: of an answer. Seconds: `upload` for the request to arrive, `prepare` for guide and
    tower, their queues included, `engine` for the engine to say anything, `drain` for a shutdown to wait.
    """

    body: int = 32 * 2**20
    pixels: int = 24_000_000
    images: int = 8
    requests: int = 64
    tokens: int = 4096
    upload: float = 30.0
    prepare: float = 60.0
    engine: float = 120.0
    drain: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (isinstance(value, int | float) and not isinstance(value, bool) and value > 0):
                raise VlmpruneError(f"The limit {name}={value!r} is not positive; give a number above 0.")


@dataclass(frozen=True)
class Picture:
    """An image part: which message and part it is, and its address, a data URL or a web address."""

    message: int
    part: int
    url: str


@dataclass(frozen=True)
class Chat:
    """A request that was read.

    `body`: what goes to the engine, without our own field. `pictures`: to be pruned; `embedded`: parts that a client
    has encoded itself. `plain`: whether a greedy answer of the guide may stand for the engine's.
    """

    body: dict[str, Any]
    pictures: tuple[Picture, ...] = ()
    embedded: tuple[dict[str, Any], ...] = ()
    keep: float | int | None = None
    exit_at: float | None = None
    max_tokens: int | None = None
    plain: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def stream(self) -> bool:
        return self.body.get("stream") is True

    def talk(self, images: list[Image.Image]) -> list[dict[str, Any]]:
        """The conversation as Hugging Face processors take it, with the pictures in their places."""
        places = {(one.message, one.part): image for one, image in zip(self.pictures, images, strict=True)}
        talk = []
        for number, message in enumerate(self.body["messages"]):
            content = message.get("content")
            parts = [{"type": "text", "text": content or ""}] if not isinstance(content, list) else content
            made = [
                {"type": "image", "image": places[number, at]} if (number, at) in places else
                {"type": "text", "text": part["text"]}
                for at, part in enumerate(parts)
            ]  # fmt: skip
            talk.append({"role": message["role"], "content": made})
        return talk

    def with_parts(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """The body with every picture replaced by what stands for it."""
        body = copy.deepcopy({**self.body, "messages": self.body["messages"]})
        for picture, part in zip(self.pictures, parts, strict=True):
            body["messages"][picture.message]["content"][picture.part] = part
        return body


def read_chat(raw: bytes, limits: Limits, exit_at: float | None = None) -> Chat:
    """Check a request's body.

    Args:
        exit_at: the server's own, where the request names none.
    Raises:
        Refused: anything in it that is not understood or not allowed.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refused("The request's body is no JSON; send a chat completion request.") from None
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or not body["messages"]:
        raise Refused("The request has no messages; send an object with a list 'messages'.")
    own = body.pop("vlmprune", None)
    keep, exit_at = _own_options(own, exit_at)
    pictures: list[Picture] = []
    embedded: list[dict[str, Any]] = []
    for number, message in enumerate(body["messages"]):
        _check_message(message)
        for at, part in enumerate(message["content"] if isinstance(message.get("content"), list) else []):
            kind = _kind(part)
            if kind == "image_url":
                pictures.append(Picture(number, at, part["image_url"]["url"]))
            elif kind == "image_embeds":
                embedded.append(part)
    if len(pictures) + len(embedded) > limits.images:
        raise Refused(f"The request has {len(pictures) + len(embedded)} images; send at most {limits.images}.")
    if pictures and embedded:
        raise Refused("The request has images and finished embeddings; send either of them.")
    longest = _max_tokens(body, limits)
    plain = body.keys() <= _PLAIN and body.get("n") in (None, 1)
    return Chat(body, tuple(pictures), tuple(embedded), keep, exit_at, longest, plain)


def _own_options(own: Any, exit_at: float | None) -> tuple[float | int | None, float | None]:
    if own is None:
        return None, exit_at
    if not isinstance(own, dict) or not own.keys() <= {"keep", "exit_at"}:
        raise Refused(f"vlmprune={own!r:.80} is not understood; send an object with 'keep', 'exit_at' or both.")
    keep = own.get("keep")
    if keep is not None:
        try:
            check_keep(keep)
        except VlmpruneError as error:
            raise Refused(f"vlmprune: {error}") from None
    if "exit_at" in own:
        exit_at = own["exit_at"]
        number = isinstance(exit_at, int | float) and not isinstance(exit_at, bool) and math.isfinite(exit_at)
        if exit_at is not None and not (number and 0 <= exit_at <= 1):
            raise Refused(f"vlmprune: exit_at={exit_at!r} is no threshold; use a number from 0 to 1, or null.")
    return keep, exit_at


def _check_message(message: Any) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Refused("A message has no role; send objects with 'role' and 'content'.")
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise Refused("A message's content is neither a text nor a list of parts; send one of these.")


def _kind(part: Any) -> str:
    """What a content part is. Others than these could make the engine fetch something itself."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return "text"
    address = part.get("image_url") if kind == "image_url" else None
    if isinstance(address, dict) and isinstance(address.get("url"), str):
        return "image_url"
    if kind == "image_embeds" and part.get("image_embeds") is not None:
        return "image_embeds"
    raise Refused(f"A content part of type {kind!r:.40} is not understood; send 'text', 'image_url' or 'image_embeds'.")


def _max_tokens(body: dict[str, Any], limits: Limits) -> int | None:
    """The longest answer that was asked for."""
    asked = [body[name] for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
    for value in asked:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limits.tokens:
            raise Refused(f"max_tokens={value!r:.40} is no length of an answer; use 1 to {limits.tokens:,}.")
    return asked[0] if asked else None


def data_image(url: str, limits: Limits) -> Image.Image:
    """The picture in a data URL.

    Raises:
        Refused: it is none, damaged, or too large.
    """
    head, comma, text = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise Refused("An image is no data URL of the form data:image/png;base64,...; send the picture itself.")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("An image's base64 text is damaged; encode the file again.") from None
    return image_of(content, limits)


def image_of(content: bytes, limits: Limits) -> Image.Image:
    """The picture in a file's bytes.

    Raises:
        Refused: as `data_image`.
    """
    try:
        return decoded(io.BytesIO(content), "the image", most_pixels=limits.pixels)
    except VlmpruneError as error:
        raise Refused(f"{error}.".replace("..", ".")) from None
