"""Which fields of a chat request go on to an engine: everything is rebuilt from the keys that its kind may have.

An engine reads more than OpenAI's API has, and some of it fetches addresses, loads files or runs templates: vLLM takes
a part for an image, whatever its `type`, where it has a `uuid`. So an unknown key is refused, unless it is empty (null,
[] or {}), as clients send what an answer brought them; then it is dropped.
"""

import json
import reprlib
from typing import Annotated, Any, Literal, Required

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from ..errors import VlmpruneError
from ..flow.select import check_keep


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
        body = json.loads(raw, object_pairs_hook=_object)
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


def _check_depth(value: Any, left: int) -> None:
    if not isinstance(value, dict | list):
        return
    if left == 0:
        raise Refused(f"The request's JSON is nested deeper than {DEEPEST} levels; send a flatter one.")
    for one in value.values() if isinstance(value, dict) else value:
        _check_depth(one, left - 1)


# -- kinds of values ---------------------------------------------------------------------------------------------------


def _writable(text: str) -> str:
    text.encode()  # JSON's escapes may leave half a surrogate pair
    return text


def _closed(schema: Any) -> Any:
    """A JSON schema, an object or its text, that refers to nothing outside of itself."""
    left = [read_json(schema.encode()) if isinstance(schema, str) else schema]
    if not isinstance(left[0], dict | bool):
        raise ValueError("a JSON schema is an object")
    while left:
        one = left.pop()
        if isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            left += one.values()
            outside = [one.get(name, "#") for name in ("$ref", "$dynamicRef", "$recursiveRef")]
            if not all(isinstance(ref, dict | list) or str(ref).startswith("#") for ref in outside):
                raise ValueError("a JSON schema must not refer to the outside")
    return schema


Text = Annotated[str, AfterValidator(_writable)]
Whole = Annotated[int, Field(gt=-(2**63), lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Schema = Annotated[Any, AfterValidator(_closed)]


def _up_to(most: int) -> Any:
    """Whole numbers that the engine can take at their word: it makes as many of something."""
    return Annotated[int, Field(ge=-1, le=most)]


def _list_of(kind: Any, most: int = MOST_VALUES) -> Any:
    return Annotated[list[kind], Field(fail_fast=True, max_length=most)]


def _map_of(kind: Any) -> Any:
    values = TypeAdapter(_list_of(kind), config=ConfigDict(strict=True))

    def checked(given: dict[str, Any]) -> dict[str, Any]:
        values.validate_python(list(given.values()))
        return given

    return Annotated[dict[str, Any], AfterValidator(checked)]


def _having(required: dict[str, Any] | None = None, **others: Any) -> Any:
    """Objects of these keys and no others; those that are not required may be null."""
    made: Any = {name: Required[kind] for name, kind in (required or {}).items()}
    made |= {name: kind | None for name, kind in others.items()}
    known = TypedDict("Known", made, total=False)  # type: ignore[misc]

    def named(given: Any) -> Any:
        """The first unknown key ends it: the schema would collect an error for each of them."""
        unknown = next((name for name in given if name not in made), None) if isinstance(given, dict) else None
        if unknown is not None:
            raise ValueError(f"{unknown!r:.60} is unknown")
        return given

    return Annotated[with_config(ConfigDict(extra="forbid", strict=True))(known), BeforeValidator(named)]


_FUNCTION = _having(name=Text, description=Text, parameters=Schema, strict=bool)
_FORMAT = _having(name=Text, description=Text, schema=Schema, strict=bool)
_CALL = _having(id=Text, type=Text, function=_having(name=Text, arguments=Text), index=Whole)


def _part(kind: str, content: Any) -> Any:
    """What a part holds stands in the field of its own type."""
    return _having({"type": Literal[kind], kind: content})


_PART: Any = Annotated[
    _part("text", Text) | _part("image_url", _having({"url": Text}, detail=Text)) | _part("image_embeds", Any),
    Field(discriminator="type"),
]


def _message(*roles: str, **more: Any) -> Any:
    return _having({"role": Literal[roles]}, content=Text | _list_of(_PART), name=Text, **more)


_MESSAGE: Any = Annotated[
    _message("system", "developer", "user")
    | _message("assistant", tool_calls=_list_of(_CALL), reasoning=Text, reasoning_content=Text)
    | _message("tool", tool_call_id=Text),
    Field(discriminator="role"),
]

# OpenAI's fields, vLLM's for sampling, and our own. Not among them: chat_template, chat_template_kwargs, documents,
# mm_processor_kwargs, media_io_kwargs, kv_transfer_params, ec_transfer_params, vllm_xargs, logits_processors, priority,
# request_id, functions, audio, prediction, web_search_options.
REQUEST = TypeAdapter(_having(
    {"messages": Annotated[_list_of(_MESSAGE), Field(min_length=1)]},
    vlmprune=_having(
        keep=Annotated[int | float, Field(le=2**31), AfterValidator(check_keep)],
        exit_at=Annotated[float, Field(ge=0, le=1)],
    ),
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
         "length_penalty"),
        Number,
    ),
    **dict.fromkeys(
        ("max_tokens", "max_completion_tokens", "seed", "top_k"),
        Whole,
    ),
    n=_up_to(MOST_ANSWERS),
    **dict.fromkeys(("top_logprobs", "prompt_logprobs"), _up_to(MOST_LOGPROBS)),
    min_tokens=_up_to(2**20),
    **dict.fromkeys(
        ("stream", "logprobs", "parallel_tool_calls", "store", "ignore_eos", "include_stop_str_in_output",
         "skip_special_tokens", "spaces_between_special_tokens", "use_beam_search", "echo", "add_generation_prompt",
         "continue_final_message", "add_special_tokens", "include_reasoning", "return_tokens_as_token_ids",
         "return_token_ids"),
        bool,
    ),
    **dict.fromkeys(
        ("model", "user", "reasoning_effort", "service_tier", "cache_salt", "safety_identifier", "prompt_cache_key",
         "verbosity"),
        Text,
    ),
    stop=Text | _list_of(Text, MOST_STOPS),
    bad_words=_list_of(Text, MOST_STOPS),
    modalities=_list_of(Literal["text"], 1),
    stop_token_ids=_list_of(Whole, MOST_STOPS),
    allowed_token_ids=_list_of(Whole),
    logit_bias=_map_of(Number),
    metadata=_map_of(Text),
    stream_options=_having(include_usage=bool, continuous_usage_stats=bool, include_obfuscation=bool),
    response_format=_having(type=Text, json_schema=_FORMAT),
    structured_outputs=_having(json=Schema, regex=Text, choice=_list_of(Text), grammar=Text, json_object=bool),
    tools=_list_of(_having(type=Text, function=_FUNCTION)),
    tool_choice=Text | _having(type=Text, function=_having(name=Text)),
))  # fmt: skip


def rebuilt(body: Any) -> dict[str, Any]:
    """A request made of the fields that are known; its messages and parts are too.

    Raises:
        Refused: an unknown field, or a value that its field does not take.
    """
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        raise Refused("The request has no messages; send an object with a list 'messages'.")
    messages = [_filled(message) for message in body["messages"]]
    for message in messages:
        if isinstance(message, dict) and isinstance(message.get("content"), list):
            message["content"] = [_filled(part) for part in message["content"]]
    try:
        made: dict[str, Any] = REQUEST.validate_python({**_filled(body), "messages": messages})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(str(one) for one in first["loc"] if "[" not in str(one))  # such name the kinds of a union
        said = f"{at or 'request':.80}={reprlib.repr(first['input'])} is not taken by this server ({first['msg']:.120})"
        raise Refused(f"{' '.join(said.split())}; correct it or leave it out.") from None
    for message in made["messages"]:
        # Left out where it may be: templates of Hugging Face differ in what they make of null.
        if message.get("content") is None and not message.get("tool_calls"):
            message["content"] = ""
    return made


def _filled(given: Any) -> Any:
    """An object without its empty fields."""
    return {name: one for name, one in given.items() if one not in (None, [], {})} if isinstance(given, dict) else given
