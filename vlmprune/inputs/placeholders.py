"""Questions that hold a token by which a model's prompt marks an image or a video.

Every such token stands for features of the vision tower: one more of them and the prompt fits its pixels no longer,
which models report from deep inside, or do not notice.
"""

import re
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import VlmpruneError

_VISUAL = {"image", "img", "video", "vision", "boi", "eoi"}  # in the names of a processor's attributes
_KNOWN: weakref.WeakKeyDictionary[Any, frozenset[str]] = weakref.WeakKeyDictionary()


def placeholders(processor: Any) -> frozenset[str]:
    """The texts that mark images and videos in a processor's prompts.

    They come from the processor itself: its attributes and its tokenizer's that name a token of an image or a video,
    and the added tokens that its chat template writes for an image or a video and not for text.
    """
    try:
        found = _KNOWN.get(processor)
    except TypeError:  # a user's own, which cannot be a key
        return frozenset(_named(processor) | _written(processor))
    if found is None:
        found = _KNOWN[processor] = frozenset(_named(processor) | _written(processor))
    return found


def check_texts(processor: Any, talk: Any) -> None:
    """Refuse a question, or a conversation or a list of them, where a text holds one of them."""
    tokens = placeholders(processor)
    tokenizer = getattr(processor, "tokenizer", None)
    for text in _texts(talk):
        held = [token for token in tokens if token in text]
        if not held and tokenizer is not None and hasattr(tokenizer, "convert_tokens_to_ids"):
            # A tokenizer may lower-case what it reads, or join what stands apart.
            ids = {tokenizer.convert_tokens_to_ids(token): token for token in tokens}
            ids.pop(getattr(tokenizer, "unk_token_id", None), None)
            held = [ids[one] for one in tokenizer(text, add_special_tokens=False)["input_ids"] if one in ids]
        if held:
            raise VlmpruneError(
                f"The question holds {max(held, key=len)!r}, which marks an image or video in this model's prompts; "
                "write it in other words."
            )


def as_words(text: str, tokens: Iterable[str]) -> str:
    """A text in which of each such token only its words are left: "<image>" becomes "image"."""
    # A tokenizer may lower-case what it reads, or join what stands apart.
    apart = (r"\s*".join(map(re.escape, token)) for token in sorted(tokens, key=len, reverse=True))
    pattern = "|".join(apart)
    return re.sub(pattern, lambda found: " ".join(re.findall(r"\w+", found[0])), text, flags=re.I) if pattern else text


def _texts(talk: Any) -> Iterator[str]:
    if isinstance(talk, str):
        yield talk
    elif isinstance(talk, list | tuple):
        for one in talk:
            yield from _texts(one)
    elif isinstance(talk, dict):
        yield from _texts(talk.get("content", talk.get("text")))


def _named(processor: Any) -> set[str]:
    """Tokens by the names under which the processor and its tokenizer hold them."""
    tokenizer = getattr(processor, "tokenizer", None)
    found = set()
    for holder in (processor, tokenizer):
        if holder is None:
            continue
        extra = getattr(holder, "_special_tokens_map", None) or getattr(holder, "special_tokens_map", None) or {}
        for name, value in (*getattr(holder, "__dict__", {}).items(), *extra.items()):
            parts = str(name).lower().strip("_").split("_")
            if parts[-1] in ("token", "tag") and _VISUAL & set(parts) and value is not None:
                found.add(str(value).strip())
    return found - {""}


def _written(processor: Any) -> set[str]:
    """Special tokens that the chat template writes for an image or a video and not for text."""
    tokenizer = getattr(processor, "tokenizer", None)
    special = {str(one) for one in getattr(tokenizer, "added_tokens_decoder", {}).values() if one.special}

    def rendered(*kinds: str) -> set[str] | None:
        content = [*({"type": kind} for kind in kinds), {"type": "text", "text": "x"}]
        try:
            text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        except Exception:  # a template may want what this conversation lacks, or know no videos
            return None
        return {token for token in special if token in text}

    plain = rendered()
    if plain is None:
        return set()
    return ((rendered("image") or set()) | (rendered("video") or set())) - plain
