"""Aggregation by a language model that answers in JSON: replies are checked, and requested again if they do not fit."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch

from ..errors import VlmpruneError
from ..methods.declared import checked_option, number
from . import prompts
from .aggregate import AggregatorError, Candidate, Fusion, Grouping, Rewrite, Similar
from .sampling import drawn_from, seed_of

T = TypeVar("T")
A = TypeVar("A", Grouping, Fusion)
Messages = list[dict[str, str]]


def _object(**properties: Any) -> dict[str, Any]:
    """A JSON schema for an object with exactly these keys, as strict endpoints want it."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(entry: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": entry}


KINDS: dict[str, Any] = {"object": dict, "array": list, "string": str, "integer": int}
TEXT = {"type": "string"}
NUMBERS = _list({"type": "integer"})
REWRITES = _list(_object(text=TEXT, numbers=NUMBERS))
SCHEMAS = {
    "group": _object(
        similar=REWRITES,
        contradictory=_list(_object(numbers=NUMBERS)),
        unique=NUMBERS,
    ),
    "merge": _object(sentences=REWRITES),
    "fuse": _object(sentences=REWRITES, dropped=_list(_object(number={"type": "integer"}, reason=TEXT))),
    "objects": _object(classes=_list(TEXT)),
}


class Unusable(Exception):
    """A reply that does not fit, with the feedback for the model; caught in this module."""


def check_schema(value: Any, schema: dict[str, Any], at: str = "the reply") -> None:
    """Whether a value fits one of the schemas above (objects, arrays, strings, integers).

    Raises:
        Unusable: it does not; the message says where.
    """
    kind = schema["type"]
    if not isinstance(value, KINDS[kind]) or isinstance(value, bool):
        raise Unusable(f"{at} must be of type {kind}, got {json.dumps(value):.40}.")
    if kind == "object":
        for name in value.keys() ^ schema["properties"].keys():
            raise Unusable(f'{at} {"has an unknown" if name in value else "lacks"} "{name}".')
        for name, inner in schema["properties"].items():
            check_schema(value[name], inner, f'"{name}"')
    elif kind == "array":
        for entry in value:
            check_schema(entry, schema["items"], f"an entry of {at}")


def parse_json(reply: str) -> Any:
    """The JSON object in a reply, also where it stands in a code fence or behind a few words.

    Raises:
        Unusable: there is none, or it is cut off.
    """
    without_thought = re.sub(r"<think>.*?</think>", "", reply, flags=re.DOTALL)
    start = without_thought.find("{")
    if start < 0:
        raise Unusable("It holds no JSON object.")
    try:
        return json.JSONDecoder().raw_decode(without_thought[start:])[0]
    except ValueError as error:
        raise Unusable(f"Its JSON is broken ({error}).") from None


@dataclass
class StructuredAggregator(ABC):
    """The conversation with a language model: numbered sentences in, checked JSON out.

    Sentences are numbered from 1 in the prompts. A reply that is not JSON, breaks the schema, leaves a number out
    or uses one twice goes back to the model with what is wrong, `attempts` times in all.
    """

    attempts: int = field(default=3, kw_only=True, metadata=number(int, 1))
    seed: int = field(default=0, kw_only=True)
    group_temperature: float = field(default=0.2, kw_only=True, metadata=number(float, 0, 100))
    merge_temperature: float = field(default=0.6, kw_only=True, metadata=number(float, 0, 100))
    fuse_temperature: float = field(default=0.2, kw_only=True, metadata=number(float, 0, 100))
    objects_temperature: float = field(default=0.2, kw_only=True, metadata=number(float, 0, 100))
    calls: int = field(default=0, init=False, compare=False)

    def __post_init__(self) -> None:
        for option in fields(self):
            setattr(self, option.name, checked_option(option, getattr(self, option.name)))

    @abstractmethod
    def complete(self, messages: Messages, *, task: str, temperature: float, seed: int) -> str:
        """The model's reply to a conversation; `task` names the schema in SCHEMAS."""

    def group(self, samples: Sequence[Sequence[str]]) -> Grouping:
        """Sort the sentences of several samples (indices run through all of them in order)."""

        def build(reply: Any) -> Grouping:
            return Grouping(
                tuple(Similar(one["text"], _indices(one["numbers"])) for one in reply["similar"]),
                tuple(_indices(one["numbers"]) for one in reply["contradictory"]),
                _indices(reply["unique"]),
            )

        lines = [f"describer {k} | {text}" for k, sample in enumerate(samples, 1) for text in sample]
        return self._ask_about(lines, "group", prompts.GROUP, build)

    def merge(self, sentences: Sequence[str]) -> Sequence[Rewrite]:
        """Rewrite as one text; the model never sees what was rejected."""
        return self._ask_about(sentences, "merge", prompts.MERGE, lambda reply: Fusion(_rewrites(reply))).sentences

    def fuse(self, candidates: Sequence[Candidate]) -> Fusion:
        """The caption of the image from the sentences of its regions."""

        def build(reply: Any) -> Fusion:
            if not reply["sentences"]:
                raise Unusable("It drops every sentence.")
            return Fusion(_rewrites(reply), tuple((one["number"] - 1, one["reason"]) for one in reply["dropped"]))

        lines = [f"{one.region} ({', '.join(f'{v:.2f}' for v in one.box)}) | {one.text}" for one in candidates]
        return self._ask_about(lines, "fuse", prompts.FUSE, build)

    def objects(self, caption: str, classes: Sequence[str]) -> Sequence[str]:
        """The classes that the caption mentions."""

        def read(reply: Any) -> list[str]:
            for name in reply["classes"]:
                if name not in classes:
                    raise Unusable(f"There is no class {name!r}.")
            return list(dict.fromkeys(reply["classes"]))

        question = prompts.OBJECTS.format(caption=caption, classes=", ".join(classes))
        return self._ask("objects", question, read)

    def _ask_about(self, lines: Sequence[str], task: str, prompt: str, build: Callable[[Any], A]) -> A:
        """An answer that uses every sentence as it should; the lines are numbered from 1."""

        def read(reply: Any) -> A:
            answer = build(reply)
            if problem := answer.problem(len(lines), first=1):
                raise Unusable(f"{problem[:1].upper()}{problem[1:]}.")
            return answer

        numbered = "\n".join(f"{number} | {line}" for number, line in enumerate(lines, 1))
        return self._ask(task, prompt.format(sentences=numbered), read)

    def _ask(self, task: str, question: str, read: Callable[[Any], T]) -> T:
        form = json.dumps(SCHEMAS[task])
        first = [
            {"role": "system", "content": prompts.SYSTEM},
            {"role": "user", "content": f"{question}\n\nThe JSON schema of the answer: {form}"},
        ]
        messages, problem = first, ""
        for attempt in range(self.attempts):
            self.calls += 1
            reply = ""
            seed, temperature = seed_of(self.seed, task, question, attempt), getattr(self, f"{task}_temperature")
            try:
                reply = self.complete(messages, task=task, temperature=temperature, seed=seed)
                value = parse_json(reply)
                check_schema(value, SCHEMAS[task])
                return read(value)
            except Unusable as error:
                problem = str(error)
                again = {"role": "user", "content": prompts.RETRY.format(problem=problem)}
                # The first question and the last try: the prompt does not grow. Without a reply there is no turn of
                # the model's to put between two of ours, which many chat templates refuse.
                if reply.strip():
                    messages = [*first, {"role": "assistant", "content": reply}, again]
                else:
                    messages = [first[0], {**first[1], "content": f"{first[1]['content']}\n\n{again['content']}"}]
        raise AggregatorError(
            f"The aggregator gave no usable reply to {task!r} in {self.attempts} attempts ({problem.rstrip('.')}); use "
            "a model that follows a JSON schema, or the WordAggregator."
        )


def _indices(numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(number - 1 for number in numbers)


def _rewrites(reply: Any) -> tuple[Rewrite, ...]:
    return tuple(Rewrite(one["text"].strip(), _indices(one["numbers"])) for one in reply["sentences"])


@dataclass
class CausalLMAggregator(StructuredAggregator):
    """Any Hugging Face causal language model with its tokenizer; a vision-language model serves as one as well.

    Raises:
        VlmpruneError: the tokenizer has no chat template.
    """

    model: Any
    tokenizer: Any
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if not getattr(self.tokenizer, "chat_template", None):
            raise VlmpruneError(
                f"{type(self.tokenizer).__name__} has no chat template, which the aggregator's conversation needs; "
                "pass an instruction-tuned model's tokenizer."
            )

    def complete(self, messages: Messages, *, task: str, temperature: float, seed: int) -> str:
        """One reply, drawn from the seed."""
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        with torch.no_grad():
            out = self.model.generate(
                **inputs,
                **drawn_from([seed], temperature),
                max_new_tokens=self.max_new_tokens,
            )
        new = out[0, inputs["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(new, skip_special_tokens=True))
