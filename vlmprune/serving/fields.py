"""Which fields of a chat request go on to an engine: everything is rebuilt from the keys that its kind may have.

An engine reads more than OpenAI's API has, and some of it fetches addresses, loads files or runs templates: vLLM takes
a part for an image, whatever its `type`, where it has a `uuid`. So an unknown key is refused, unless it is empty (null,
[] or {}), as clients send what an answer brought them; then it is dropped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from ..errors import VlmpruneError


class Refused(VlmpruneError):
    """A request that is answered with an error: `status` is HTTP's."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


MOST_VALUES = 500_000  # in a request's JSON: each takes some hundred bytes of memory, and two in the request
DEEPEST = 64
MOST_ANSWERS = 64  # `n`: an engine makes a request of its own for each
MOST_LOGPROBS = 20  # OpenAI's own limit, and vLLM's
MOST_STOPS = 256


def read_json(raw: bytes | bytearray) -> Any:
    """A request's body.

    Raises:
        Refused: no JSON, the same key twice in an object, or more values than a request needs.
    """
    if sum(raw.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
        raise Refused(f"The request's JSON has more than {MOST_VALUES:,} values; send a smaller one.", 413)
    try:
        body = json.loads(raw, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused("The request's body is no JSON; send a chat completion request.") from None
    _check_depth(body, DEEPEST)
    return body


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise Refused("An object in the request has the same key twice; send each once.")
    return made


def _constant(name: str) -> Any:
    raise Refused(f"The request holds {name}, which is not a number in JSON; leave it out.")


def _check_depth(value: Any, left: int) -> None:
    if not isinstance(value, dict | list):
        return
    if left == 0:
        raise Refused(f"The request's JSON is nested deeper than {DEEPEST} levels; send a flatter one.")
    for one in value.values() if isinstance(value, dict) else value:
        _check_depth(one, left - 1)


# -- kinds of values ---------------------------------------------------------------------------------------------------


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_number(value: Any) -> bool:
    """Whether it is a finite number, of at most 64 bits where it is whole."""
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


def _text(value: Any) -> bool:
    """A text that can be written; JSON's escapes may leave half a surrogate pair."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _list_of(kind: Callable[[Any], bool], most: int = MOST_VALUES) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) <= most and all(map(kind, value))


def _map_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(kind, value.values()))


def _having(**kinds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Objects of these keys and no others."""
    return lambda value: (
        isinstance(value, dict)
        and value.keys() <= kinds.keys()
        and all(one is None or kinds[name](one) for name, one in value.items())
    )


def _any_of(*kinds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: any(kind(value) for kind in kinds)


def _up_to(most: int) -> Callable[[Any], bool]:
    """Whole numbers that the engine can take at their word: it makes as many of something."""
    return lambda value: _whole(value) and -1 <= value <= most


def _schema(value: Any) -> bool:
    """A JSON schema, an object or its text, that refers to nothing outside of itself."""
    if not isinstance(value, str):
        return isinstance(value, dict | bool) and _closed(value)
    try:
        return _schema(read_json(value.encode()))
    except (Refused, UnicodeEncodeError):
        return False


def _closed(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_closed, value))
    if not isinstance(value, dict):
        return True
    outside = [value[name] for name in ("$ref", "$dynamicRef", "$recursiveRef") if name in value]
    return all(isinstance(one, dict | list) or str(one).startswith("#") for one in outside) and all(
        map(_closed, value.values())
    )


_FUNCTION = _having(name=_text, description=_text, parameters=_schema, strict=_flag)
_FORMAT = _having(name=_text, description=_text, schema=_schema, strict=_flag)

# OpenAI's fields, and vLLM's for sampling. Not among them: chat_template, chat_template_kwargs, documents,
# mm_processor_kwargs, media_io_kwargs, kv_transfer_params, ec_transfer_params, vllm_xargs, logits_processors, priority,
# request_id, functions, audio, prediction, web_search_options.
FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
         "length_penalty"),
        is_number,
    ),
    **dict.fromkeys(
        ("max_tokens", "max_completion_tokens", "seed", "top_k"),
        _whole,
    ),
    "n": _up_to(MOST_ANSWERS),
    **dict.fromkeys(("top_logprobs", "prompt_logprobs"), _up_to(MOST_LOGPROBS)),
    "min_tokens": _up_to(2**20),
    **dict.fromkeys(
        ("stream", "logprobs", "parallel_tool_calls", "store", "ignore_eos", "include_stop_str_in_output",
         "skip_special_tokens", "spaces_between_special_tokens", "use_beam_search", "echo", "add_generation_prompt",
         "continue_final_message", "add_special_tokens", "include_reasoning", "return_tokens_as_token_ids",
         "return_token_ids"),
        _flag,
    ),
    **dict.fromkeys(
        ("model", "user", "reasoning_effort", "service_tier", "cache_salt", "safety_identifier", "prompt_cache_key",
         "verbosity"),
        _text,
    ),
    "stop": _any_of(_text, _list_of(_text, MOST_STOPS)),
    "bad_words": _list_of(_text, MOST_STOPS),
    "modalities": lambda value: value == ["text"],
    "stop_token_ids": _list_of(_whole, MOST_STOPS),
    "allowed_token_ids": _list_of(_whole),
    "logit_bias": _map_of(is_number),
    "metadata": _map_of(_text),
    "stream_options": _having(include_usage=_flag, continuous_usage_stats=_flag, include_obfuscation=_flag),
    "response_format": _having(type=_text, json_schema=_FORMAT),
    "structured_outputs": _having(
        json=_schema, regex=_text, choice=_list_of(_text), grammar=_text, json_object=_flag
    ),
    "tools": _list_of(_having(type=_text, function=_FUNCTION)),
    "tool_choice": _any_of(_text, _having(type=_text, function=_having(name=_text))),
}  # fmt: skip

_CALL = _having(id=_text, type=_text, function=_having(name=_text, arguments=_text), index=_whole)
_MESSAGE: dict[str, Callable[[Any], bool]] = {"role": _text, "name": _text}
MESSAGES: dict[str, dict[str, Callable[[Any], bool]]] = {
    "system": _MESSAGE,
    "developer": _MESSAGE,
    "user": _MESSAGE,
    "assistant": {**_MESSAGE, "tool_calls": _list_of(_CALL), "reasoning": _text, "reasoning_content": _text},
    "tool": {**_MESSAGE, "tool_call_id": _text},
}
# What a part holds stands in the field of its own type.
PARTS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "text": {"type": _text, "text": _text},
    "image_url": {"type": _text, "image_url": lambda value: isinstance(value, dict)},
    "image_embeds": {"type": _text, "image_embeds": lambda value: True},
}


def rebuilt(given: dict[str, Any], kinds: dict[str, Callable[[Any], bool]], what: str) -> dict[str, Any]:
    """An object of a request, made of its known fields without the empty ones; `what` is its name in messages.

    Raises:
        Refused: an unknown field, or a value that its field does not take.
    """
    made = {}
    for name, value in given.items():
        if value is None or value == [] or value == {}:
            continue
        if name not in kinds:
            raise Refused(f"{what} has the field {name!r:.60}, which this server does not pass on; leave it out.")
        if not kinds[name](value):
            raise Refused(f"{what} has {name}={value!r:.60}, which this field does not take; correct or leave it out.")
        made[name] = value
    return made


def message(given: Any) -> dict[str, Any]:
    """A message whose content is a text, a list of parts (`part`) or absent.

    Raises:
        Refused: as `rebuilt`.
    """
    role = given.get("role") if isinstance(given, dict) else None
    if not isinstance(role, str) or role not in MESSAGES:
        raise Refused(f"A message has the role {role!r:.40}; use {', '.join(MESSAGES)}.")
    content = given.pop("content", None)
    made = rebuilt(given, MESSAGES[role], "A message")
    if content is None:
        # Left out where it may be: templates of Hugging Face differ in what they make of null.
        return made if made.get("tool_calls") else {**made, "content": ""}
    if not isinstance(content, list) and not _text(content):
        raise Refused("A message's content must be a text or a list of parts; send one of these.")
    return {**made, "content": [part(one) for one in content] if isinstance(content, list) else content}


def part(given: Any) -> dict[str, Any]:
    """A content part of a kind that cannot make an engine fetch anything; `image_url` is the address alone.

    Raises:
        Refused: another kind, an empty part, or as `rebuilt`.
    """
    kind = given.get("type") if isinstance(given, dict) else None
    if not isinstance(kind, str) or kind not in PARTS:
        raise Refused(f"A content part has the type {kind!r:.40}; send {', '.join(PARTS)}.")
    made = rebuilt(given, PARTS[kind], "A content part")
    if kind == "image_url" and kind in made:
        address = rebuilt(made[kind], {"url": _text, "detail": _text}, "An image's address")
        made[kind] = address.get("url")
    if made.get(kind) is None:
        raise Refused(f"A content part of type {kind!r} is empty; send {kind!r} with its content.")
    return made
