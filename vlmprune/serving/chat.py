"""Chat requests from outside, read within limits; nothing is fetched here."""

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..errors import VlmpruneError
from ..inputs.images import decoded, size_of
from ..inputs.placeholders import as_words
from .fields import MOST_TOKENS, MOST_VALUES, Refused, read_json, rebuilt

# Fields that change nothing of a greedy answer, whatever they are.
_WITHOUT_EFFECT = {
    "messages", "model", "max_tokens", "max_completion_tokens", "stream", "stream_options", "user", "seed", "store",
    "metadata", "service_tier", "safety_identifier", "cache_salt", "prompt_cache_key", "top_p", "min_p", "modalities",
}  # fmt: skip
# Fields that change nothing where they have these values.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (0,), "n": (1,), "logprobs": (False,), "top_logprobs": (0,), "presence_penalty": (0,),
    "frequency_penalty": (0,), "repetition_penalty": (1,), "top_k": (1, 0, -1), "ignore_eos": (False,),
    "tool_choice": ("none",), "skip_special_tokens": (True,), "response_format": ({"type": "text"},),
}  # fmt: skip


def is_greedy(fields: dict[str, Any]) -> bool:
    """Whether a request asks for one greedy answer in plain text; without a temperature engines sample."""
    rest = fields.keys() - _WITHOUT_EFFECT
    return fields.get("temperature") == 0 and all(fields[name] in _NEUTRAL.get(name, ()) for name in rest)


@dataclass(frozen=True)
class Limits:
    """What one client may ask of everybody's server, and all of them together.

    `body`: bytes per request, and of all images that are fetched for it. `open_bodies`: of all open requests, until
    their images have become embeddings. `values`: in a request's JSON. `requests`: open at once.
    Requests with images alone, the engine has its own limits: `images`: per request. `pixels`: per image.
    `request_pixels`: of all images of a request, and of what is decoded at once. `open_pixels`: of all requests that
    wait for guide and tower; more are refused for the moment. `text`: characters per request. `tokens`: per answer,
    more than any engine's by default.
    `cache`: bytes of the vision tower's rows and of the conversations' kept tokens that are remembered, 0 for none.
    Seconds: `upload` for the request to arrive, `prepare` for guide and tower, their queues included, `engine` for the
    engine to be silent before and within a stream, `answer` for an answer that comes whole, `drain` for a shutdown to
    wait.
    """

    body: int = 32 * 2**20
    open_bodies: int = 256 * 2**20
    values: int = MOST_VALUES
    requests: int = 64
    images: int = 8
    pixels: int = 24_000_000
    request_pixels: int = 48_000_000
    open_pixels: int = 256_000_000
    text: int = 1_000_000
    tokens: int = MOST_TOKENS
    cache: int = 512 * 2**20
    upload: float = 30.0
    prepare: float = 60.0
    engine: float = 120.0
    answer: float = 3600.0
    drain: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if (name, value) != ("cache", 0) and not (
                isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
            ):
                raise VlmpruneError(f"The limit {name}={value!r} is not positive; give a number above 0.")
        for name, larger in (
            ("pixels", "request_pixels"), ("request_pixels", "open_pixels"), ("body", "open_bodies")
        ):  # fmt: skip
            if getattr(self, name) > getattr(self, larger):
                raise VlmpruneError(
                    f"The limit {larger}={getattr(self, larger):,} is below {name}={getattr(self, name):,}; raise it."
                )


class Quota:
    """An amount of which all open requests together hold at most `most`, used on one thread; `what` begins the message
    for a request that finds too little left."""

    def __init__(self, most: int, what: str) -> None:
        self.most, self.what, self.used = most, what, 0

    @contextmanager
    def claim(self) -> Iterator["Claim"]:
        """One request's part, given back at the end."""
        claim = Claim(self)
        try:
            yield claim
        finally:
            claim.keep(0)


class Claim:
    """One request's part of a `Quota`."""

    def __init__(self, shared: Quota) -> None:
        self._shared, self._own = shared, 0

    def add(self, amount: int) -> None:
        """Take more, or raise `Refused` where there is not as much left."""
        if self._shared.used + amount > self._shared.most:
            raise Refused(f"{self._shared.what}; come back in a second.", 503)
        self._shared.used += amount
        self._own += amount

    def keep(self, amount: int) -> None:
        """Give back what is more than this."""
        spare = max(0, self._own - amount)
        self._shared.used -= spare
        self._own -= spare


@dataclass(frozen=True)
class ImagePart:
    """What an image part holds: the bytes of a file, or the web address they are at, with the number of pixels that the
    file says it has, or embeddings that the client has made."""

    content: bytes = field(default=b"", repr=False)
    url: str | None = None
    pixels: int = 0
    embeddings: Any = field(default=None, repr=False)

    @cached_property
    def digest(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Chat:
    """A request that was read.

    `body`: what goes to the engine, rebuilt from the fields that are known; where an image was is `None`. `images`:
    either to be pruned, or, where `embedded`, all of them finished. `exit_at`: None where the guide's greedy answer is
    not what was asked for.
    """

    body: dict[str, Any]
    images: tuple[ImagePart, ...] = ()
    embedded: bool = False
    keep: float | int | None = None
    exit_at: float | None = None
    max_tokens: int | None = None

    @property
    def pixels(self) -> int:
        return sum(image.pixels for image in self.images)

    @property
    def messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.body["messages"]
        return found

    @property
    def texts(self) -> list[str]:
        """Of all messages and their parts."""
        return list(_texts(self.messages))

    def turns(self) -> list["Chat"]:
        """The conversation up to the end of each turn that brought images: the answer that follows, or its own end."""
        made, seen, count = [], 0, 0
        for at, one in enumerate([*self.messages, {"role": "assistant"}]):
            if one["role"] == "assistant" and count > seen:
                body, seen = {**self.body, "messages": self.messages[:at]}, count
                made.append(replace(self, body=body, images=self.images[:count]))
            count += one["content"].count(None) if isinstance(one.get("content"), list) else 0
        return made

    def key(self) -> bytes:
        """Of the messages, the images and the budget: what the choice of visual tokens follows from."""
        seen = [self.messages, [image.digest for image in self.images], self.keep]
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).digest()

    def as_words(self, tokens: Iterable[str]) -> "Chat":
        """The request without these tokens in its texts, which would stand for images: their words are left."""
        messages = [
            {**one, "content": as_words(one["content"], tokens)}
            if isinstance(one.get("content"), str)
            else {**one, "content": [part and _in_words(part, tokens) for part in one.get("content", [])]}
            for one in self.messages
        ]
        return replace(self, body={**self.body, "messages": messages})

    def talk(self, most_pixels: int) -> list[dict[str, Any]]:
        """The conversation as Hugging Face processors take it, with the images unpacked in their places."""
        files = [io.BytesIO(image.content) for image in self.images]
        images = [decoded(file, "the image", most_pixels=most_pixels) for file in files]
        talk = []
        for one in self._messages([{"type": "image", "image": image} for image in images]):
            content = one.get("content") or ""
            parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
            parts = [{"type": "text", "text": part["refusal"]} if "refusal" in part else part for part in parts]
            talk.append({"role": one["role"], "content": parts})
        return talk

    def with_parts(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """The body with what stands for its images, whole or embedded, in their places."""
        return {**self.body, "messages": self._messages(parts)}

    def _messages(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        left = iter(parts)
        return [
            {**one, "content": [next(left) if part is None else part for part in one["content"]]}
            if isinstance(one.get("content"), list)
            else one
            for one in self.messages
        ]


def read_chat(
    raw: bytes | bytearray,
    limits: Limits,
    exit_at: float | None = None,
    *,
    embeddings: bool = False,
    urls: bool = False,
) -> Chat:
    """Check a request's body.

    Args:
        raw: a bytearray is emptied when it was read, so that images are not held twice. exit_at: the server's own,
            where the request names none. embeddings: whether clients may send images that they encoded themselves.
            urls: whether images may be on the web.
    Raises:
        VlmpruneError: anything in it that is not understood or not allowed.
    """
    body = read_json(raw, limits.values)
    if isinstance(raw, bytearray):
        raw.clear()
    fields = rebuilt(body)
    del body  # the text of images goes as soon as it was decoded
    own, messages = fields.pop("vlmprune", {}), fields["messages"]
    found = _images(messages, limits)
    kinds = {part["type"] for part in found}
    longest = _max_tokens(fields, limits if found else Limits())
    embedded = "image_embeds" in kinds
    if embedded and not embeddings:
        raise Refused("Image embeddings are not taken by this server; send the image itself as a data URL.", 403)
    if len(kinds) > 1:
        raise Refused("The request has images and finished embeddings; send either of them.")
    images: list[ImagePart] = []
    while found:
        part = found.pop(0)
        images.append(
            ImagePart(embeddings=part["image_embeds"]) if embedded else _image_part(part["image_url"], limits, urls)
        )
        check_pixels(images, limits)
    wanted = own.get("exit_at", exit_at) if is_greedy(fields) else None
    return Chat(fields, tuple(images), embedded, own.get("keep"), wanted, longest)


def _texts(messages: list[dict[str, Any]]) -> Iterator[str]:
    for one in messages:
        content: Any = one.get("content", "")
        if isinstance(content, str):
            yield content
        else:
            yield from (part[part["type"]] for part in content if part and part["type"] in ("text", "refusal"))


def _in_words(part: dict[str, Any], tokens: Iterable[str]) -> dict[str, Any]:
    return {**part, part["type"]: as_words(part[part["type"]], tokens)}


def _images(messages: list[dict[str, Any]], limits: Limits) -> list[dict[str, Any]]:
    """The image parts of rebuilt messages, taken out of them."""
    found = []
    for one in messages:
        content: Any = one.get("content", "")
        for at, part in enumerate(content if isinstance(content, list) else []):
            if part["type"] in ("image_url", "image_embeds"):
                found.append(part)
                content[at] = None
    text = sum(map(len, _texts(messages))) if found else 0
    if text > limits.text:
        raise Refused(f"The request has {text:,} characters of text; send at most {limits.text:,}.", 413)
    if len(found) > limits.images:
        raise Refused(f"The request has {len(found)} images; send at most {limits.images}.")
    return found


def _max_tokens(fields: dict[str, Any], limits: Limits) -> int | None:
    """The longest answer that was asked for."""
    asked = [fields[name] for name in ("max_completion_tokens", "max_tokens") if name in fields]
    for value in asked:
        if not 1 <= value <= limits.tokens:
            raise Refused(f"max_tokens must be from 1 to {limits.tokens:,}, got {value!r:.40}.")
    return asked[0] if asked else None


# -- images ----------------------------------------------------------------------------------------------------------


def _image_part(given: Any, limits: Limits, urls: bool) -> ImagePart:
    url: str = given if isinstance(given, str) else given["url"]
    if url.startswith(("http://", "https://")):
        if not urls:
            raise Refused("Images on the web are not fetched by this server; send the image itself as a data URL.", 403)
        return ImagePart(url=url)
    head, comma, text = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise Refused("An image must be a data URL of the form data:image/png;base64,...; send the image itself.")
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError:
        raise Refused("An image's base64 text is damaged; encode the file again.") from None
    return ImagePart(content, pixels=pixels_of(content, limits))


def pixels_of(content: bytes, limits: Limits) -> int:
    """How many pixels an image's file says it has.

    Raises:
        VlmpruneError: more than an image may have, or it is not an image.
    """
    width, height = size_of(io.BytesIO(content), "the image")
    if width * height > limits.pixels:
        raise Refused(f"An image has {width * height:,} pixels; send at most {limits.pixels:,}.")
    return width * height


def check_pixels(images: Sequence[ImagePart], limits: Limits) -> None:
    """Refuse a request whose images have too many pixels together."""
    total = sum(image.pixels for image in images)
    if total > limits.request_pixels:
        most = f"{limits.request_pixels:,}"
        raise Refused(f"The request's images have {total:,} pixels together; send at most {most}.", 413)
