"""Which of an engine's other routes clients reach, all of them without images, and the fields that go on there.

Images are looked at on `/v1/chat/completions` alone, so no other route takes one, in whatever form. Routes that read
files, load adapters, run functions of the engine or take any of its requests (`/invocations`, `/v1/messages`,
`/pooling`, `/render`, `/collective_rpc`, `/sleep`, `/v1/load_lora_adapter` ...) are not in these lists.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter

from .fields import (
    FORMAT,
    MOST_LOGPROBS,
    SAMPLING,
    TEXT_PARTS,
    TOOLS,
    Length,
    Schema,
    Text,
    Whole,
    having,
    list_of,
    messages_of,
    part_of,
    up_to,
)

# Read from the engine as they are; `{id}` is checked to be one.
READ = ("/v1/models", "/v1/responses/{id}", "/version", "/load", "/ping")
# What ends a stream there; those of `/v1/responses` end with an event that names the answer's state.
WITH_DONE = ("/v1/chat/completions", "/v1/completions")

_COMPLETION = having(
    {"prompt": Text | list_of(Text) | list_of(Whole) | list_of(list_of(Whole))},
    **SAMPLING,
    suffix=Text,
    logprobs=up_to(MOST_LOGPROBS),
    best_of=up_to(64),
    truncate_prompt_tokens=up_to(2**24),
)
_TOKENIZE = having(
    model=Text,
    prompt=Text,
    messages=messages_of(TEXT_PARTS),
    tools=TOOLS,
    add_special_tokens=bool,
    return_token_strs=bool,
    add_generation_prompt=bool,
    continue_final_message=bool,
)

_SAID = part_of("input_text", Text, "text") | part_of("output_text", Text, "text") | TEXT_PARTS
_THOUGHT = list_of(having(type=Text, text=Text))


def _item(kind: str, required: dict[str, Any], **more: Any) -> Any:
    return Annotated[having(required, type=Literal[kind], id=Text, status=Text, **more), Tag(kind)]


_INPUT: Any = Annotated[
    _item(
        "message",
        {
            "role": Literal["system", "developer", "user", "assistant"],
            "content": Text | list_of(Annotated[_SAID, Field(discriminator="type")]),
        },
    )
    | _item("function_call", {"call_id": Text, "name": Text, "arguments": Text})
    | _item("function_call_output", {"call_id": Text, "output": Text})
    | _item("reasoning", {}, summary=_THOUGHT, content=_THOUGHT, encrypted_content=Text),
    Discriminator(lambda item: item.get("type", "message") if isinstance(item, dict) else None),
]
_RESPONSE = having(
    {"input": Text | list_of(_INPUT)},
    **SAMPLING,
    max_output_tokens=Length,
    max_tool_calls=Whole,
    background=bool,
    include=list_of(Text, 64),
    text=having(
        format=having(type=Text, name=Text, description=Text, schema=Schema, strict=bool, json_schema=FORMAT),
        verbosity=Text,
    ),
    reasoning=having(effort=Text, summary=Text, generate_summary=Text),
    tools=list_of(having(type=Literal["function"], name=Text, description=Text, parameters=Schema, strict=bool)),
    tool_choice=Text | having(type=Text, name=Text),
    **dict.fromkeys(("instructions", "previous_response_id", "truncation"), Text),
)

# Where a request goes on to, and what it may have.
WRITE: dict[str, TypeAdapter[Any]] = {
    "/v1/completions": TypeAdapter(_COMPLETION),
    "/v1/responses": TypeAdapter(_RESPONSE),
    "/tokenize": TypeAdapter(_TOKENIZE),
    "/detokenize": TypeAdapter(having({"tokens": list_of(Whole)}, model=Text)),
}
