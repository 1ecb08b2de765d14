"""Copies of a wrapped model, or of any part of it, are the plain thing, however they are made."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import nn
from transformers import AutoConfig

import vlmprune
from tests.support.grid import grid, only_full
from tests.support.running import outside, shared
from tests.support.tiny_families import FAMILIES, build, make_inputs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def protocol_2(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing, protocol=2))


def saved(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# A model whose tower recorded its hidden states once cannot be pickled, wrapped or not: transformers hangs local
# functions on it. So the copies here are made before the first forward.
WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": pickled,
    "pickle 2": protocol_2,
    "torch.save": saved,
}


def ours(module: nn.Module) -> list[str]:
    """Everything of the package that hangs on a module or on one below it."""
    found = []
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if "vlmprune" in key or key in ("__getstate__", "__deepcopy__", "generate", "get_image_features"):
                found.append(f"{name}.{key}")
            if key.endswith("_hooks") and any("vlmprune" in type(hook).__module__ for hook in value.values()):
                found.append(f"{name}.{key}")
        config = getattr(part, "config", None)
        if config is not None and ("vlmprune" in str(config._attn_implementation) or "vlmprune" in str(vars(config))):
            found.append(f"{name}.config")
    return found


METHODS: dict[str, Any] = {
    "list": [vlmprune.Random(keep=0.3), vlmprune.ACT()],
    "tower": vlmprune.VisionZip(keep=0.3),
    "oracle": vlmprune.FastVOracle(keep=0.3),
}


@grid(family=FAMILIES, way=["deepcopy", "copy", "pickle"])
def test_a_copy_of_the_model_is_the_plain_model(family, way):
    inputs = make_inputs(shared(family))
    model = build(family)
    with torch.no_grad():
        plain = shared(family)(**inputs).logits
        with vlmprune.wrap(shared(family), "fastv", keep=0.3):
            short = shared(family)(**inputs).logits
        with vlmprune.wrap(model, "fastv", keep=0.3) as pruned:
            before = outside(model)
            twin = WAYS[way](model)
            assert outside(model) == before  # the original is as it was
            assert ours(model)
            assert not ours(twin)
            assert torch.equal(twin(**inputs).logits, plain)
            assert torch.equal(model(**inputs).logits, short)
            assert pruned.active
        assert torch.equal(twin(**inputs).logits, plain)
        with vlmprune.wrap(twin, "random", keep=0.3):
            assert not torch.equal(twin(**inputs).logits, plain)
            assert torch.equal(model(**inputs).logits, plain)
        assert torch.equal(twin(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("way", WAYS)
def test_whatever_the_method_is(way, name):
    model = build("llava")
    inputs = make_inputs(model)
    with torch.no_grad():
        plain = shared("llava")(**inputs).logits
        with vlmprune.wrap(model, METHODS[name]):
            twin = WAYS[way](model)
            assert not ours(twin)
            assert torch.equal(twin(**inputs).logits, plain)


PARTS: dict[str, Callable[[Any], nn.Module]] = {
    "model.model": lambda model: model.model,
    "language model": lambda model: model.model.language_model,
    "layers": lambda model: model.model.language_model.layers,
    "layer": lambda model: model.model.language_model.layers[1],
    "attention": lambda model: model.model.language_model.layers[1].self_attn,
    "tower": lambda model: model.model.vision_tower,
    "tower attention": lambda model: model.model.vision_tower.encoder.layers[-1].self_attn,
}


@pytest.mark.parametrize("way", [way for way in WAYS if way != "copy"])
@pytest.mark.parametrize("part", PARTS)
def test_a_copy_of_a_part(part, way):
    """Put in the place of the original's part after `unwrap`, it computes what that did."""
    model = build("llava")
    inputs = make_inputs(model)
    method = [vlmprune.VisionZip(keep=0.3), vlmprune.ACT()]
    with torch.no_grad():
        plain = shared("llava")(**inputs).logits
        with vlmprune.wrap(shared("llava"), method):
            short = shared("llava")(**inputs).logits
        with vlmprune.wrap(model, method):
            original = PARTS[part](model)
            twin = WAYS[way](original)
            assert not ours(twin)
            assert torch.equal(model(**inputs).logits, short)
        owner = next(m for m in model.modules() if any(child is original for child in m.children()))
        setattr(owner, next(name for name, child in owner.named_children() if child is original), twin)
        assert not ours(model)
        assert torch.equal(model(**inputs).logits, plain)
        if part == "model.model":
            assert twin.language_model.layers[1].self_attn.config is twin.language_model.config


def test_a_container_of_two_parts_keeps_what_they_share():
    model = build("llava")
    with vlmprune.wrap(model, "fastv", keep=0.3):
        for way in (copy.deepcopy, pickled):
            twin = way({"whole": model, "part": model.model})
            assert twin["whole"].model is twin["part"]


@pytest.mark.parametrize("way", ["deepcopy", "copy", "pickle"])
def test_the_config_of_a_probed_attention(way):
    model = build("llava")
    attention = model.model.language_model.layers[1].self_attn
    own = attention.config
    with vlmprune.wrap(model, "fastv", keep=0.3):
        assert attention.config is not own
        twin = WAYS[way](attention.config)
        assert attention.config.to_dict() == own.to_dict()
        attention.config.attention_dropout = 0.25  # no write is lost
    assert type(twin) is type(own)
    assert twin._attn_implementation == "sdpa"
    assert "vlmprune" not in str(vars(twin))
    assert attention.config is own
    assert own.attention_dropout == 0.25


def test_the_attention_implementation_can_be_changed_while_wrapped():
    model = build("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, "fastv", keep=0.3), torch.no_grad():
        fused = model(**inputs).logits
        model.set_attn_implementation("eager")
        eager = model(**inputs).logits
        torch.testing.assert_close(eager, fused, rtol=0, atol=1e-4)
    assert model.model.language_model.layers[1].self_attn.config._attn_implementation == "eager"


def test_weights_and_files_are_those_of_the_plain_model(tmp_path):
    model = build("llava")
    inputs = make_inputs(model)
    names = list(model.state_dict())
    with vlmprune.wrap(model, "fastv", keep=0.3) as pruned, torch.no_grad():
        short = model(**inputs).logits
        assert list(model.state_dict()) == names
        model.save_pretrained(tmp_path)
        assert model.to(torch.float64).dtype == torch.float64
        assert model.to(torch.float32) is model
        assert torch.equal(model(**inputs).logits, short)
        assert pruned.report.kept_tokens == [3, 3, 3]
    assert "vlmprune" not in (tmp_path / "config.json").read_text()
    assert AutoConfig.from_pretrained(tmp_path).model_type == "llava"


def test_a_method_that_holds_a_wrapped_guide():
    """A pickled SGL brings its guide along, which comes out plain."""
    model, guide = build("llava"), build("llava", seed=1, layers=3)
    inputs = make_inputs(guide)
    plain = build("llava", seed=1, layers=3)(**inputs).logits
    with vlmprune.wrap(guide, "fastv", keep=0.3):
        method = pickled(vlmprune.SGL(guide, keep=0.3))
    assert torch.equal(method.guide(**inputs).logits, plain)
    with vlmprune.wrap(model, method):
        model(**make_inputs(model))


def test_a_handle_is_not_copied():
    model = build("llava")
    with vlmprune.wrap(model, "fastv", keep=0.3) as pruned:
        for way in (copy.copy, copy.deepcopy, pickled):
            with pytest.raises(vlmprune.VlmpruneError, match=r"^A handle cannot be copied .*\.$"):
                way(pruned)


def _in_a_process(path: Path, model: Any, inputs: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    with torch.no_grad():
        torch.save((ours(model), model(**inputs).logits), path)


@only_full
@pytest.mark.timeout(300)
def test_a_spawned_process_gets_the_plain_model(tmp_path):
    model = build("qwen2_vl")  # CLIP records no hidden states in a process that built none, wrapped or not
    inputs = dict(make_inputs(model))
    with torch.no_grad():
        plain = shared("qwen2_vl")(**inputs).logits
    with vlmprune.wrap(model, "fastv", keep=0.3):
        context = torch.multiprocessing.get_context("spawn")
        process = context.Process(target=_in_a_process, args=(tmp_path / "out", model, inputs))
        process.start()
        process.join()
    assert process.exitcode == 0
    found, logits = torch.load(tmp_path / "out")
    assert not found
    assert torch.equal(logits, plain)


# -- models inside other models ---------------------------------------------------------------------------------------


def one_sentence(call: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(vlmprune.VlmpruneError) as caught:
        call()
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize("call", ["forward", "base", "generate"])
def test_a_replica_refuses(call):
    """What `DataParallel` makes of a model for every further device."""
    model = build("llava")
    inputs = make_inputs(model)
    plain = model(**inputs).logits
    with vlmprune.wrap(model, "fastv", keep=0.3):
        short = model(**inputs).logits
        replica = model._replicate_for_data_parallel()
        base = model.model._replicate_for_data_parallel()
        target = {"forward": replica, "base": base, "generate": getattr(replica, "generate", None)}[call]
        one_sentence(functools.partial(target, **inputs), "DistributedDataParallel", "unwrap")
        assert torch.equal(model(**inputs).logits, short)
    assert torch.equal(model(**inputs).logits, plain)
    assert "generate" not in vars(model._replicate_for_data_parallel())  # of the plain model: torch's own


def test_wrap_wants_the_model_inside():
    model = build("llava")
    one_sentence(lambda: vlmprune.wrap(nn.DataParallel(model), "fastv"), "DataParallel", ".module")


@pytest.fixture
def _alone():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_alone")
def test_distributed_data_parallel_around_a_wrapped_model():
    model = build("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, "random", keep=0.3) as pruned:
        expected = model(**inputs).logits
        parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        out = parallel(**inputs)
        assert torch.equal(out.logits, expected)
        assert pruned.report.kept_tokens == [3, 3, 3]
        out.logits.sum().backward()
        one_sentence(lambda: vlmprune.wrap(parallel, "fastv"), "DistributedDataParallel", ".module")
        assert pruned.active
        with vlmprune.wrap(parallel.module, "random", keep=0.5) as inner:
            parallel(**inputs)
            assert inner.report.kept_tokens == [5, 5, 5]


def test_a_handle_instead_of_its_model():
    model = build("llava")
    inputs = make_inputs(model)
    pruned = vlmprune.wrap(model, "random", keep=0.3)
    newer = vlmprune.wrap(pruned, "random", keep=0.5)
    assert newer.model is model
    assert not pruned.active
    assert newer(**inputs).report.kept_tokens == [5, 5, 5]
    assert len(vlmprune.find_sinks(newer, **inputs).samples) == 3
    other = build("llava", seed=1)
    with vlmprune.wrap(other, vlmprune.SGL(newer, keep=0.3)):
        assert other(**inputs).report.kept_tokens == [3, 3, 3]
    assert newer(**inputs).report.kept_tokens == [5, 5, 5]
    newer.unwrap()


def test_a_compiled_module_stands_for_its_model():
    """Wrapped twice over, the model would keep the first method; nothing is compiled before the first call."""
    model = build("llava")
    inputs = make_inputs(model)
    model(**inputs)
    compiled = torch.compile(model, backend="eager")
    before = outside(model)
    first = vlmprune.wrap(model, "random", keep=0.3)
    second = vlmprune.wrap(compiled, "random", keep=0.5)
    assert not first.active
    assert second.model is compiled
    assert model(**inputs).report.kept_tokens == [5, 5, 5]
    third = vlmprune.wrap(model, "random", keep=0.3)
    assert not second.active
    assert model(**inputs).report.kept_tokens == [3, 3, 3]
    assert vlmprune.find_sinks(compiled, **inputs).samples
    third.unwrap()
    assert outside(model) == before
    other = build("llava", seed=1)
    guided = vlmprune.SGL(torch.compile(model, backend="eager"), keep=0.3)
    with vlmprune.wrap(other, guided):
        assert other(**inputs).report.kept_tokens == [3, 3, 3]
    assert outside(model) == before


def test_a_guide_that_is_wrapped_ranks_as_the_plain_one():
    model, guide = build("llava"), build("llava", seed=1, layers=3)
    inputs = make_inputs(model)
    with vlmprune.wrap(model, vlmprune.SGL(guide, keep=0.3)), torch.no_grad():
        plain = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        with vlmprune.wrap(guide, "random", keep=0.2):
            wrapped = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    for one, other in zip(plain.report.kept, wrapped.report.kept, strict=True):
        assert torch.equal(one, other)
    assert plain.report.confidence == wrapped.report.confidence


def test_peft_around_a_wrapped_model_and_a_wrap_around_peft():
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    inputs = make_inputs(build("llava"))
    with torch.no_grad():
        adapted = peft.get_peft_model(build("llava"), settings)
        plain = copy.deepcopy(adapted)(**inputs).logits
        with vlmprune.wrap(adapted, "random", keep=0.3) as pruned:
            for way in (copy.deepcopy, pickled):
                twin = way(adapted)
                assert not ours(twin)
                assert torch.equal(twin(**inputs).logits, plain)
            assert adapted(**inputs).report.kept_tokens == [3, 3, 3]
            assert vlmprune.wrap(pruned, "random", keep=0.5).model is adapted
        vlmprune.wrap(adapted, "none").unwrap()
        assert torch.equal(adapted(**inputs).logits, plain)
        later = build("llava")
        with vlmprune.wrap(later, "random", keep=0.3):
            assert peft.get_peft_model(later, settings)(**inputs).report.kept_tokens == [3, 3, 3]


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "none"])
def test_an_output_and_its_cache(way, method):
    """A later turn on the copy of the cache is that on the cache itself."""
    model = shared("llava")
    inputs = make_inputs(model)
    later = {"input_ids": torch.tensor([[20, 21], [22, 23], [24, 25]])}
    with vlmprune.wrap(model, method, **({} if method == "none" else {"keep": 0.3})), torch.no_grad():
        first = model(**inputs, use_cache=True)
        twin = WAYS[way](first)
        assert torch.equal(twin.logits, first.logits)
        length = inputs["input_ids"].shape[1]
        assert twin.past_key_values.get_seq_length() == first.past_key_values.get_seq_length() == length
        theirs = model(**later, past_key_values=twin.past_key_values).logits
        assert twin.past_key_values.get_seq_length() == length + 2
        assert first.past_key_values.get_seq_length() == length
        assert torch.equal(theirs, model(**later, past_key_values=first.past_key_values).logits)


METHODS_OF: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "generate": lambda model: model.generate,
    "partial": lambda model: functools.partial(model.generate),
    "forward": lambda model: model.forward,
}


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("name", METHODS_OF)
def test_a_copied_method_is_that_of_the_copied_model(name, way):
    """Which is how a process that is spawned gets its target, and an object that holds `model.generate` is copied."""
    model = build("qwen2_vl")
    inputs = make_inputs(model)
    options = {} if name == "forward" else {"max_new_tokens": 3, "do_sample": False}
    with torch.no_grad(), vlmprune.wrap(model, "fastv", keep=0.3):
        twin = WAYS[way](METHODS_OF[name](model))
        assert METHODS_OF[name](model)(**inputs, **options).report.kept_tokens != []
        out, wanted = twin(**inputs, **options), METHODS_OF[name](shared("qwen2_vl"))(**inputs, **options)
    assert not hasattr(out, "report")
    if name == "forward":
        assert torch.equal(out.logits, wanted.logits)
    else:
        assert torch.equal(out, wanted)
