"""The loss of a pruned prompt: it has fewer rows of logits than labels, so it is computed on the kept ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .flow.compact import Compaction, gather_positions

IGNORED = -100  # the label that transformers' losses leave out


def kept_labels(labels: Tensor, chosen: Compaction) -> Tensor:
    """Labels [B, S] of the kept rows [B, S'], padding ignored."""
    chosen = chosen.to(labels.device)
    return gather_positions(labels, chosen.index).masked_fill(~chosen.real, IGNORED)


def with_loss(model: Any, output: Any, labels: Tensor, kwargs: dict[str, Any]) -> Any:
    """A forward's output, a tuple or an object with fields, with the model's own loss of these labels."""
    as_dict = hasattr(output, "logits")
    logits = output.logits if as_dict else output[0]
    extra = {k: kwargs[k] for k in ("num_items_in_batch",) if k in kwargs}
    vocabulary = model.config.get_text_config().vocab_size
    loss = model.loss_function(logits=logits, labels=labels, vocab_size=vocabulary, **extra)
    if as_dict:
        output.loss = loss
        return output
    return (loss, *output)
