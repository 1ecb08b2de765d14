"""A layer that is given what the one before was given gets what that one got: never where anything differs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vlmprune
from tests.support.reference import language_model
from tests.support.tiny_families import build, make_inputs
from vlmprune.ops.top_k_triton import _bounds
from vlmprune.runtime.layer_before import LayerBefore

METHODS = {"before 0": vlmprune.Uniform(keep=0.4, layer=0), "before 2": vlmprune.FastV(keep=0.4, layer=2)}


@pytest.mark.parametrize("changes", ["nothing", "a new dict", "the dict itself"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl"])
def test_what_a_users_hook_gives_one_layer_stays_there(
    family: str, method: str, changes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(family)
    inputs = make_inputs(model)

    def halve(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        given = kwargs if changes == "the dict itself" else dict(kwargs)
        given["position_embeddings"] = tuple(part / 2 for part in given["position_embeddings"])
        return None if given is kwargs else (args, given)

    def logits() -> Tensor:
        """Of a prompt and four steps."""
        with vlmprune.wrap(model, METHODS[method]):
            out = model.generate(
                **inputs, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        return torch.stack(out.logits)

    if changes != "nothing":
        language_model(model).layers[2].register_forward_pre_hook(halve, with_kwargs=True)
    fast = logits()
    monkeypatch.setattr(LayerBefore, "same", lambda *_: False)
    assert torch.equal(fast, logits())


def test_only_the_very_same_is_the_same() -> None:
    hidden, mask, before = torch.zeros(1, 4, 8), torch.ones(1, 4), LayerBefore()
    assert not before.same("full", hidden, {})
    before.keep("full", hidden, {"mask": mask, "cache": None}, {"mask": None})
    assert before.same("full", hidden + 1, {"cache": None, "mask": mask}) and before.made == {"mask": None}
    before.made["mask"] = mask  # type: ignore[index]  # a dict: the line above
    assert before.made == {"mask": None}, "a caller's dict is its own"
    for kind, given, kwargs in [
        ("window", hidden, {"mask": mask, "cache": None}),
        ("full", hidden[:, :3], {"mask": mask, "cache": None}),
        ("full", hidden.to("meta"), {"mask": mask, "cache": None}),
        ("full", hidden, {"mask": mask.clone(), "cache": None}),
        ("full", hidden, {"mask": mask}),
        ("full", hidden, {"mask": mask, "more": None}),
    ]:
        assert not before.same(kind, given, kwargs)


def test_the_ranking_of_images_that_are_alike_copies_nothing_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph that held such a copy would read memory that the host has used for something else since."""
    device = torch.device("cpu")
    starts, counts, firsts = (part.tolist() for part in _bounds([6, 2], [2, 0], device))
    assert (starts, counts[:2], firsts) == ([0, 6, 8], [2, 0], [0, 2, 2])
    monkeypatch.delattr(torch, "tensor")  # which makes them there
    starts, counts, firsts = (part.tolist() for part in _bounds([6, 6, 6], [2, 2, 2], device))
    assert (starts, counts[:3], firsts) == ([0, 6, 12, 18], [2, 2, 2], [0, 2, 4, 6])
