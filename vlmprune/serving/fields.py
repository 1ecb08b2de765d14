"""Which fields of a chat request go on to an engine: everything is rebuilt from the keys that its kind may have.

An engine reads more than OpenAI's API has, and some of it fetches addresses, loads files or runs templates: vLLM takes
a part for an image, whatever its `type`, where it has a `uuid`. So an unknown key is refused, unless it is empty (null,
[] or {}), as clients send what an answer brought them; then it is dropped.
"""

import json
import re
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
# Beyond these vLLM refuses a request by itself, whatever it was started with: of `n` it makes requests of their own.
MOST_ANSWERS = 2**14
MOST_LOGPROBS = 2**20
MOST_TOKENS = 2**24
MOST_STOPS = 256


def read_json(raw: bytes | bytearray, most_values: int = MOST_VALUES) -> Any:
    """A request's body; of a key that an object has twice the last value counts, as in vLLM.

    Raises:
        Refused: no JSON, or more values than a request needs.
    """
    if sum(raw.count(mark) for mark in (b",", b"[", b"{")) > most_values:
        raise Refused(f"The request's JSON has more than {most_values:,} values; send a smaller one.", 413)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refused("The request's body is no JSON that can be read; send an object of ordinary numbers.") from None
    _check_depth(body, DEEPEST)
    return body


def _check_depth(value: Any, left: int) -> None:
    if not isinstance(value, dict | list):
        return
    if left == 0:
        raise Refused(f"The request's JSON is nested deeper than {DEEPEST} levels; send a flatter one.")
    for one in value.values() if isinstance(value, dict) else value:
        _check_depth(one, left - 1)


# -- kinds of values ---------------------------------------------------------------------------------------------------


def _writable(text: str) -> str:
    """Without the halves of surrogate pairs that JSON's escapes may leave, which have no UTF-8."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


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
Length = Annotated[int, Field(ge=1, le=MOST_TOKENS)]


def up_to(most: int) -> Any:
    """Whole numbers that the engine can take at their word: it makes as many of something."""
    return Annotated[int, Field(ge=-1, le=most)]


def list_of(kind: Any, most: int = MOST_VALUES) -> Any:
    """Lists of a kind, of which the first bad value ends the reading."""
    return Annotated[list[kind], Field(fail_fast=True, max_length=most)]


def map_of(kind: Any) -> Any:
    """Objects of any keys with values of a kind."""
    values = TypeAdapter(list_of(kind), config=ConfigDict(strict=True))

    def checked(given: dict[str, Any]) -> dict[str, Any]:
        values.validate_python(list(given.values()))
        return given

    return Annotated[dict[str, Any], AfterValidator(checked)]


def having(required: dict[str, Any] | None = None, **others: Any) -> Any:
    """Objects of these keys and no others; those that are not required may be null."""
    made: Any = {name: Required[kind] for name, kind in (required or {}).items()}
    made |= others
    known = TypedDict("Known", made, total=False)  # type: ignore[misc]

    def named(given: Any) -> Any:
        """Without empty fields; the first unknown one ends it: the schema would collect an error for each of them."""
        if not isinstance(given, dict):
            return given
        empty = {name for name, one in given.items() if one is None or one == [] or (one == {} and name not in made)}
        filled = {name: one for name, one in given.items() if name not in empty}
        unknown = next((name for name in filled if name not in made), None)
        if unknown is not None:
            raise ValueError(f"{unknown!r:.60} is unknown")
        return filled

    return Annotated[with_config(ConfigDict(extra="forbid", strict=True))(known), BeforeValidator(named)]


_FUNCTION = having(name=Text, description=Text, parameters=Schema, strict=bool)
FORMAT = having(name=Text, description=Text, schema=Schema, strict=bool)
_CALL = having(id=Text, type=Text, function=having(name=Text, arguments=Text), index=Whole)


def part_of(kind: str, content: Any, field: str = "") -> Any:
    """What a part holds stands in the field of its own type."""
    return having({"type": Literal[kind], field or kind: content})


TEXT_PARTS = part_of("text", Text) | part_of("refusal", Text)
_IMAGE_PARTS = part_of("image_url", having({"url": Text}, detail=Text) | Text) | part_of("image_embeds", Any)


def messages_of(parts: Any) -> Any:
    """A conversation whose messages have these parts."""

    def message(*roles: str, **more: Any) -> Any:
        content = Text | list_of(Annotated[parts, Field(discriminator="type")])
        return having({"role": Literal[roles]}, content=content, name=Text, **more)

    kinds = (
        message("system", "developer", "user")
        | message("assistant", tool_calls=list_of(_CALL), refusal=Text, reasoning=Text, reasoning_content=Text)
        | message("tool", tool_call_id=Text)
    )
    return Annotated[list_of(Annotated[kinds, Field(discriminator="role")]), Field(min_length=1)]


# OpenAI's fields, vLLM's for sampling, and our own. Not among them: chat_template, chat_template_kwargs, documents,
# mm_processor_kwargs, media_io_kwargs, kv_transfer_params, ec_transfer_params, vllm_xargs, logits_processors, priority,
# request_id, functions, audio, prediction, web_search_options.
SAMPLING: dict[str, Any] = {
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
         "length_penalty"),
        Number,
    ),
    **dict.fromkeys(("seed", "top_k"), Whole),
    **dict.fromkeys(
        ("stream", "parallel_tool_calls", "store", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens",
         "spaces_between_special_tokens", "use_beam_search", "echo", "add_special_tokens", "include_reasoning",
         "return_tokens_as_token_ids", "return_token_ids"),
        bool,
    ),
    **dict.fromkeys(
        ("model", "user", "service_tier", "cache_salt", "safety_identifier", "prompt_cache_key"), Text
    ),
    "n": up_to(MOST_ANSWERS),
    "top_logprobs": up_to(MOST_LOGPROBS),
    "prompt_logprobs": up_to(MOST_LOGPROBS),
    "min_tokens": up_to(2**20),
    "max_tokens": Length,
    "stop": Text | list_of(Text, MOST_STOPS),
    "bad_words": list_of(Text, MOST_STOPS),
    "stop_token_ids": list_of(Whole, MOST_STOPS),
    "allowed_token_ids": list_of(Whole),
    "logit_bias": map_of(Number),
    "metadata": map_of(Text),
    "stream_options": having(include_usage=bool, continuous_usage_stats=bool, include_obfuscation=bool),
    "response_format": having(type=Text, json_schema=FORMAT),
    "structured_outputs": having(json=Schema, regex=Text, choice=list_of(Text), grammar=Text, json_object=bool),
}  # fmt: skip
TOOLS = list_of(having(type=Text, function=_FUNCTION))
REQUEST = TypeAdapter(having(
    {"messages": messages_of(TEXT_PARTS | _IMAGE_PARTS)},
    **SAMPLING,
    vlmprune=having(
        keep=Annotated[int | float, Field(le=2**31), AfterValidator(check_keep)],
        exit_at=Annotated[float, Field(ge=0, le=1)],
    ),
    max_completion_tokens=Length,
    **dict.fromkeys(("logprobs", "add_generation_prompt", "continue_final_message"), bool),
    **dict.fromkeys(("reasoning_effort", "verbosity"), Text),
    modalities=list_of(Literal["text"], 1),
    tools=TOOLS,
    tool_choice=Text | having(type=Text, function=having(name=Text)),
))  # fmt: skip


def rebuilt(body: Any, request: TypeAdapter[Any] = REQUEST) -> dict[str, Any]:
    """A request made of the fields that are known, in its messages and parts too.

    Raises:
        Refused: an unknown field, or a value that its field does not take.
    """
    try:
        made: dict[str, Any] = request.validate_python(body)
    except ValidationError as error:
        # Of the kinds that a union tried, the one that got furthest.
        first = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))
        at = ".".join(str(one) for one in first["loc"] if "[" not in str(one))  # such name the kinds of a union
        said = f"{at or 'request':.80}={reprlib.repr(first['input'])} is not taken by this server ({first['msg']:.120})"
        raise Refused(f"{' '.join(said.split())}; correct it or leave it out.") from None
    for message in made.get("messages", []):
        # Left out where it may be: templates of Hugging Face differ in what they make of null.
        if message.get("content") is None and not message.get("tool_calls"):
            message["content"] = ""
    return made
