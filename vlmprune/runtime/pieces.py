"""A prompt that comes in pieces: `generate` runs it whole; a ranking by the question is not used without the question.

Shapes: B batch, S sequence.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import VlmpruneError
from ..flow.prompt_state import PromptState
from ..hf.arguments import setting
from ..methods.base import Method

RANKED = "ranked"  # the name under which a cache keeps what follows
_REMEDY = "run the image and the whole question as one prompt, without a cache from before"
# Config fields of what processors write around an image, which is no text.
_MARKERS = ("vision_start_token_id", "vision_end_token_id", "boi_token_index", "eoi_token_index")


@dataclass
class Ranked:
    """On the cache of a prompt whose visual tokens were ranked by its text.

    `method`: which ranked them. `silent`: in some sample no text stood behind the last image. `over`: the prompt is,
    since tokens were generated.
    """

    method: str
    silent: bool
    over: bool


def ranked(method: Method, state: PromptState, visual: Tensor, config: Any, over: bool) -> Ranked:
    """What pieces that come later on a prompt's cache must know of it.

    `method`: which ranks by the text. `visual`: bool [B, S], which ids stand for visual tokens. `over`: whether the
    prompt is.
    """
    ids, valid = state.input_ids, state.prompt_valid
    markers = [value for name in _MARKERS if (value := getattr(config, name, None)) is not None]
    text = valid & ~visual & ~torch.isin(ids, torch.tensor(markers, dtype=ids.dtype))
    # The last position of either kind, 0 where there is none.
    place = torch.arange(1, ids.shape[1] + 1)
    image, words = (((kind & valid) * place).amax(dim=1) for kind in (visual, text))
    return Ranked(type(method).__name__, bool((image > words).any()), over)


def check_later(ranked: Ranked | None, tokens: int, *, generating: bool, begins: bool) -> None:
    """Look at `tokens` tokens that come on the cache of a prompt; one alone may always be a generated one.

    Args:
        ranked: what the cache keeps, None where nothing depends on the text. generating: inside of `generate`, whose
            first forward this is where `begins`: later ones check several candidates for generated tokens at once.
    Raises:
        VlmpruneError: they are known to belong to the question, which was not there when tokens were ranked by it.
    """
    if ranked is None:
        return
    method = ranked.method
    if tokens > 1 and (begins or not generating):
        if ranked.silent:
            raise VlmpruneError(
                f"{method} ranks visual tokens by the text behind the image, but the prompt ended with its image and "
                f"{tokens} tokens of text come later; {_REMEDY}."
            )
        if begins and not ranked.over:
            raise VlmpruneError(
                f"{method} ranks visual tokens by the end of the prompt, but its last {tokens} tokens come in a later "
                f"piece; {_REMEDY}."
            )
        if not ranked.over:  # an answer to be scored looks the same as the rest of a question
            warnings.warn(
                f"{method} ranked the visual tokens by the first piece of this prompt; if the {tokens} tokens that "
                f"come now belong to the question, {_REMEDY}.",
                stacklevel=2,
            )
    ranked.over = True


def refuse_part(method: str, ids: Tensor, mask: Any) -> None:
    """Refuse a first piece: one whose padding mask [B, more than S] covers pieces to come."""
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] > ids.shape[1]:
        raise VlmpruneError(
            f"{method} ranks visual tokens by the end of the prompt, but of its {mask.shape[1]} tokens (by its "
            f"attention_mask) only {ids.shape[1]} are here; {_REMEDY}."
        )


def run_whole(model: Any, kwargs: dict[str, Any], config: Any = None) -> str | None:
    """Have a `generate` with an image run its prompt in one piece, whatever its settings; what the report says of it.

    `config`: the call's `generation_config` where it is none of the `kwargs`.
    """
    size = setting(model, {"generation_config": config, **kwargs}, "prefill_chunk_size")
    if size is None:
        return None
    kwargs["prefill_chunk_size"] = None
    return (
        f"prefill_chunk_size={size} was left out: a prompt with an image is run whole, or it would be ranked by a part"
    )
