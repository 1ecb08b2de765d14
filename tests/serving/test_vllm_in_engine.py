"""Images pruned inside the real vLLM equal images pruned by `vlmprune.wrap` before layer 0."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoProcessor

import vlmprune
from eval.serving.servers import vllm_server
from tests.serving.support import QUESTIONS, chat, message_of, text_of
from tests.serving.vllm_engine import STEPS, Engine, vllm
from tests.support.engines import picture, qwen_for_engine, save_for_vllm
from tests.support.grid import either
from vlmprune.errors import VlmpruneError
from vlmprune.flow.select import count_for
from vlmprune.inputs.chat import build_messages, tokenize

pytestmark = pytest.mark.vllm
SETTINGS = {"method": "divprune", "keep": 0.25, "max_keep": 0.6}


@pytest.fixture(scope="module")
def in_process() -> Iterator[None]:
    """The engine in this process, so that its model can be looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        yield


# Prompts of at most 64 tokens a step are cut in the middle of images.
@pytest.fixture(scope="module", params=either([64], [64, 2048]))
def llava(request: Any, in_process: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    large, _, processor = vlmprune.load_tiny()
    folder = save_for_vllm(large, tmp_path_factory.mktemp("llava"), processor)
    settings = {**SETTINGS, "max_keep": 1.0}
    engine = Engine(folder, large, processor, hf_overrides={"vlmprune": settings}, max_num_batched_tokens=request.param)
    yield engine
    engine.stop()


def model_of(engine: Engine) -> Any:
    return engine.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.get_model()


def ask(engine: Engine, talk: Any, **wanted: Any) -> tuple[dict[str, Any], Any]:
    """A prompt for the engine, one placeholder an image, and the model's own inputs."""
    inputs = tokenize(engine.processor, talk)
    ids, image = inputs["input_ids"][0].tolist(), engine.model.config.image_token_id
    images = [part["image"] for turn in talk for part in turn["content"] if part["type"] == "image"]
    # The images of a prompt may touch; each of the bundled model has 196 tokens.
    short = [token for at, token in enumerate(ids) if token != image or ids[:at].count(image) % 196 == 0]
    return {
        "prompt_token_ids": short,
        "multi_modal_data": {"image": images},
        **({"mm_processor_kwargs": wanted} if wanted else {}),
    }, inputs


def test_every_method(llava: Engine) -> None:
    talk = build_messages(picture(1), QUESTIONS[0])
    wanted: list[tuple[Any, Any]] = [
        ("divprune", 0.25), ("divprune", 6), ("uniform", 0.5), ("downsample", 0.3), ("visionzip", 0.25), ("scope", 40),
        ("vidcom2", 0.25), ("temporal", 0.25), ({"name": "visionzip", "contextual": 0.5}, 20),
    ]  # fmt: skip
    prompts, inputs = [], None
    for method, keep in wanted:
        prompt, inputs = ask(llava, talk, method=method, keep=keep)
        prompts.append(prompt)
    for answer, (method, keep) in zip(llava.answers(prompts), wanted, strict=True):
        options = dict(method) if isinstance(method, dict) else {"name": method}
        llava.expect(answer, inputs, vlmprune.list_methods()[options.pop("name")](keep=keep, layer=0, **options))


def test_methods_differ(llava: Engine) -> None:
    """Against the positions of another policy, and against another method, the same comparison fails."""
    talk = build_messages(picture(1), QUESTIONS[0])
    prompt, inputs = ask(llava, talk)
    (answer,) = llava.answers([prompt])
    llava.expect(answer, inputs, vlmprune.DivPrune(keep=0.25))
    for other in (vlmprune.DivPrune(keep=0.25, positions="compact"), vlmprune.Uniform(keep=0.25)):
        with pytest.raises(AssertionError):
            llava.expect(answer, inputs, other)


def test_random_is_drawn_for_every_image_alike(llava: Engine) -> None:
    """Not from the prompt, as `wrap` does: an image is encoded once for all questions."""
    prompts = []
    for seed in (0, 1):
        method = {"name": "random", "seed": seed}
        prompts += [ask(llava, build_messages(picture(2), QUESTIONS[1]), method=method)[0] for _ in range(2)]
    first, again, other, _ = llava.answers(prompts)
    assert first[1] == again[1]
    assert first[1] != other[1]


def test_mixed_budgets_text_and_two_images_in_one_batch(llava: Engine) -> None:
    talks = [build_messages(picture(i), QUESTIONS[i % 3]) for i in range(4)]
    talks += [build_messages([picture(5), picture(6)], QUESTIONS[0]), build_messages([picture(6)] * 2, QUESTIONS[1])]
    keeps: list[Any] = [0.25, 3, 1.0, 0.6, 5, 0.4]
    asked = [ask(llava, talk, keep=keep) for talk, keep in zip(talks, keeps, strict=True)]
    text = {"prompt_token_ids": llava.processor.tokenizer(QUESTIONS[2])["input_ids"]}
    answers = llava.answers([text, *[prompt for prompt, _ in asked]])[1:]
    for answer, (_, inputs), keep in zip(answers, asked, keeps, strict=True):
        llava.expect(answer, inputs, vlmprune.DivPrune(keep=keep))


def test_what_a_request_asks_for_is_checked(llava: Engine) -> None:
    talk = build_messages(picture(0), QUESTIONS[0])
    good, _ = ask(llava, talk)
    before = llava.answers([good])
    for wanted in (
        {"keep": 0}, {"keep": 1.5}, {"keep": -1}, {"keep": float("nan")}, {"keep": "all"}, {"keep": True},
        {"keep": [1]}, {"method": "fastv"}, {"method": "sgl"}, {"method": "cdpruner"}, {"method": "prumerge"},
        {"method": "nonsense"},
        {"method": 3}, {"method": {"name": "random", "seed": -1}}, {"method": {"name": "uniform", "keep": 0.1}},
        {"method": {"name": "uniform", "layer": 2}}, {"method": {"name": "uniform", "top_p": 0.5}}, {"method": {}},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"\w") as caught:
            llava.answers([ask(llava, talk, **wanted)[0]])
        assert isinstance(caught.value, VlmpruneError), wanted
        assert "\n" not in str(caught.value)
    ends = {**good, "prompt_token_ids": good["prompt_token_ids"][: 1 + good["prompt_token_ids"].index(
        llava.model.config.image_token_id)]}  # fmt: skip
    with pytest.raises(ValueError, match="ends with an image"):
        llava.answers([ends])
    assert llava.answers([good]) == before


def two_turns(engine: Engine, number: int, **wanted: Any) -> tuple[float, Any, Any]:
    """The fraction of the first turn that the second finds in the cache, and the second's answer and inputs."""
    talk = build_messages([picture(number), picture(number + 1)], QUESTIONS[0])
    first, _ = ask(engine, talk, **wanted)
    settings = vllm.SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True, logprobs=5, detokenize=False)
    (out,) = engine.llm.generate([first], settings, use_tqdm=False)
    said = engine.processor.tokenizer.decode(out.outputs[0].token_ids, skip_special_tokens=True)
    talk = [*talk, {"role": "assistant", "content": [{"type": "text", "text": said}]}]
    talk += [{"role": "user", "content": [{"type": "text", "text": QUESTIONS[1]}]}]
    second, inputs = ask(engine, talk, **wanted)
    (again,) = engine.llm.generate([second], settings, use_tqdm=False)
    steps = [{token: one.logprob for token, one in step.items()} for step in again.outputs[0].logprobs]
    return again.num_cached_tokens / len(out.prompt_token_ids), (list(again.outputs[0].token_ids), steps), inputs


def test_the_second_turn_finds_the_first_in_the_cache(llava: Engine) -> None:
    pruned, answer, inputs = two_turns(llava, 20, keep=0.5)
    llava.expect(answer, inputs, vlmprune.DivPrune(keep=0.5))
    plain, _, _ = two_turns(llava, 22, keep=1.0)
    print(f"\nfraction of the first turn in the cache: {pruned:.2f} pruned, {plain:.2f} unpruned")
    assert pruned >= 0.9 * plain > 0.5


def test_an_image_is_encoded_once_for_all_questions(llava: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = model_of(llava), []
    encode = model.vision_tower.forward
    monkeypatch.setattr(model.vision_tower, "forward", lambda *a, **k: calls.append(1) or encode(*a, **k))
    for question, wanted, encoded in (
        (QUESTIONS[0], {}, 1),
        ("Is there a star?", {}, 1),
        ("How many stars are there?", {"keep": 0.25}, 1),  # what the server does by itself
        (QUESTIONS[0], {"keep": 0.3}, 2),
        (QUESTIONS[0], {"method": "uniform"}, 3),
    ):
        talk = build_messages(picture(30), question)
        talk[0]["content"].reverse()  # the question first, so that nothing of the image is in the prefix cache
        prompt, inputs = ask(llava, talk, **wanted)
        (answer,) = llava.answers([prompt])
        assert len(calls) == encoded, question
        method = wanted.get("method", "divprune")
        # `wrap` keeps the prompt's last token, and text follows the image here too.
        llava.expect(answer, inputs, vlmprune.list_methods()[method](keep=wanted.get("keep", 0.25)))


def test_positions_stay_where_they_are_in_memory(llava: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA graphs read the addresses they were captured with."""
    seen = []
    language = model_of(llava).language_model.model
    forward = language.forward
    monkeypatch.setattr(language, "forward", lambda *given, **named: seen.append(given[1]) or forward(*given, **named))
    llava.answers([ask(llava, build_messages(picture(i), QUESTIONS[0]))[0] for i in range(3)])
    assert len(seen) > 5
    assert len({(one.data_ptr(), one.dtype) for one in seen}) == 1


def test_bounds_and_offers(in_process: None) -> None:
    """What the server allows, without an engine."""
    from vlmprune.serving.in_engine import EngineSettings, layout_of, planned

    config = vlmprune.load_tiny()[0].config
    config.vlmprune = {"keep": 0.25, "min_keep": 10, "max_keep": 0.5, "methods": ["uniform"]}
    settings, span = (
        EngineSettings.read(config),
        layout_of(config, {}, torch.full((196,), config.image_token_id), torch.ones(196, dtype=torch.bool)).images[0],
    )
    for keep in (10, 0.25, 98):
        assert settings.count(planned(settings.plan({"keep": keep})), span) == count_for(keep, 196)
    for keep in (9, 0.01, 99, 1.0):
        with pytest.raises(VlmpruneError, match="keeps 10 to 98"):
            settings.count(planned(settings.plan({"keep": keep})), span)
    with pytest.raises(VlmpruneError, match="not offered"):
        settings.plan({"method": "downsample"})
    assert planned(settings.plan({"method": "uniform"})) == vlmprune.Uniform(keep=0.25)
    for wrong in (0.25, {"kepe": 1}, {"keep": 0}, {"method": "fastv"}, {"methods": "uniform"}, {"max_keep": 0.0}):
        config.vlmprune = wrong
        with pytest.raises(VlmpruneError):
            EngineSettings.read(config)
    config.model_type = "mllama"
    with pytest.raises(VlmpruneError, match="not pruned inside vLLM"):
        EngineSettings.read(config)


def test_what_cannot_be_combined(in_process: None) -> None:
    from vlmprune.serving.plugin.pruned import check_engine

    config = vlmprune.load_tiny()[0].config

    def check(settings: Any, tensor: int = 1, pipeline: int = 1, draft: Any = None, videos: bool = False) -> None:
        config.vlmprune = settings
        multimodal = SimpleNamespace(mm_processor_kwargs=None, is_multimodal_pruning_enabled=lambda: videos)
        model = SimpleNamespace(hf_config=config, get_multimodal_config=lambda: multimodal)
        parallel = SimpleNamespace(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)
        check_engine(SimpleNamespace(model_config=model, parallel_config=parallel, speculative_config=draft))

    check({})
    check({"methods": ["uniform"]}, 2)
    for wrong in ({"methods": ["uniform", "scope"]}, {"method": "visionzip", "methods": []}):
        with pytest.raises(VlmpruneError, match=r"Tensor parallelism.*(scope|visionzip)"):
            check(wrong, 2)
    with pytest.raises(VlmpruneError, match="which scope, visionzip would"):
        check({}, 2)  # a request may ask for any method
    for options in ({"pipeline": 2}, {"draft": object()}, {"videos": True}):
        with pytest.raises(VlmpruneError, match="cannot be pruned inside vLLM together with"):
            check({}, **options)


@pytest.fixture(scope="module", params=either(["qwen3_vl"], ["qwen2_5_vl", "qwen3_vl"]))
def qwen(request: Any, in_process: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp(request.param)
    model = qwen_for_engine(request.param, folder)
    engine = Engine(folder, model, None, hf_overrides={"vlmprune": SETTINGS}, max_num_batched_tokens=64)
    yield engine
    engine.stop()


def test_qwen(qwen: Engine) -> None:
    processor, span = AutoProcessor.from_pretrained(qwen.folder), "<|vision_start|><|image_pad|><|vision_end|>"
    wide, high = picture(2).crop((0, 0, 96, 48)), picture(3).crop((0, 0, 40, 112))
    wanted: list[tuple[str, list[Any], dict[str, Any]]] = [
        (f"w11 {span} w12 w13", [wide], {}),
        (f"w11 {span} w12 {span} w13 w14", [high, wide], {"keep": 0.5}),
        (f"{span} {span} w14", [wide, wide], {"keep": 7, "method": "uniform"}),
        (f"w15 w16 {span} w12 w13", [high], {"method": "downsample"}),
        (f"w11 {span} w17 w13", [wide], {}),
    ]
    prompts, expected = [], []
    for text, images, options in wanted:
        ids = processor.tokenizer(text)["input_ids"]
        data = {"prompt_token_ids": ids, "multi_modal_data": {"image": images}}
        prompts.append({**data, **({"mm_processor_kwargs": options} if options else {})})
        expected.append(dict(processor(text=[text], images=images, return_tensors="pt")))
    for answer, inputs, (_, _, options) in zip(qwen.answers(prompts), expected, wanted, strict=True):
        kind = vlmprune.list_methods()[options.get("method", "divprune")]
        qwen.expect(answer, inputs, kind(keep=options.get("keep", 0.25)))
    for method in ("visionzip", "scope"):
        with pytest.raises(VlmpruneError, match="vision tower"):
            qwen.answers([{**prompts[0], "mm_processor_kwargs": {"method": method}}])
    for keep in (0.9, 1.0):
        with pytest.raises(VlmpruneError, match="keeps 1 to"):
            qwen.answers([{**prompts[0], "mm_processor_kwargs": {"keep": keep}}])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of vLLM's own server, started as a user starts it."""
    large, _, processor = vlmprune.load_tiny()
    folder = save_for_vllm(large, tmp_path_factory.mktemp("served"), processor)
    settings = '{"vlmprune": {"keep": 0.25, "max_keep": 0.5}}'
    # Without the second option vLLM takes no request's mm_processor_kwargs.
    with vllm_server(folder, "--hf-overrides", settings, "--trust-request-mm-kwargs") as (address, _):
        yield address


def test_the_server(address: str) -> None:
    def post(**more: Any) -> httpx.Response:
        body = {**chat(QUESTIONS[0], picture(1)), **more}
        return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=600, trust_env=False)

    large, _, processor = vlmprune.load_tiny()
    with vlmprune.wrap(large, "divprune", keep=0.25, processor=processor) as pruned:
        expected = pruned.ask(picture(1), QUESTIONS[0])
    got = post()
    assert text_of(got).strip() == expected.text
    tokens = got.json()["usage"]["prompt_tokens"]
    fewer = post(mm_processor_kwargs={"keep": 5, "method": "uniform"})
    assert fewer.status_code == 200, fewer.text
    assert fewer.json()["usage"]["prompt_tokens"] == tokens - 49 + 5
    wrong = [{"keep": 2.0}, {"keep": 0.9}, {"keep": "x"}, {"method": "fastv"}, {"method": {"name": "uniform", "n": 1}}]
    for refused in (post(mm_processor_kwargs=one) for one in wrong):
        assert refused.status_code == 400, refused.text
        assert message_of(refused).count("\n") == 0
    assert text_of(post()).strip() == expected.text


def clip(number: int, frames: int, wide: int = 32, high: int = 24) -> np.ndarray[Any, Any]:
    """Noise: tokens of equal patches tie, and rounding would choose among them. [frames, height, width, 3]"""
    return np.random.default_rng(number).integers(0, 255, (frames, high, wide, 3), dtype=np.uint8)


def clip_prompt(engine: Engine, text: str, clips: list[Any], images: list[Any], **wanted: Any) -> tuple[Any, Any]:
    """A prompt for the engine and the model's own inputs, of clips of two frames a second."""
    processor = AutoProcessor.from_pretrained(engine.folder)
    about = [
        {"fps": 2.0, "duration": len(one) / 2, "total_num_frames": len(one), "frames_indices": list(range(len(one)))}
        for one in clips
    ]
    media: dict[str, Any] = {"video": list(zip(clips, about, strict=True))}
    more = {"videos": clips, "video_metadata": about, "do_sample_frames": False}
    if images:
        media["image"] = images
        more["images"] = images
    prompt = {"prompt_token_ids": processor.tokenizer(text)["input_ids"], "multi_modal_data": media}
    inputs = dict(processor(text=[text], return_tensors="pt", **more))
    return {**prompt, **({"mm_processor_kwargs": wanted} if wanted else {})}, inputs


def test_videos(qwen: Engine) -> None:
    if qwen.model.config.model_type == "qwen3_vl" and Version(transformers.__version__) >= Version("5.20"):
        pytest.skip("vLLM 0.32 reads its videos with transformers below 5.20 only")
    span, film = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))
    short, long, image = clip(0, 4), clip(1, 6, 40, 32), picture(2).crop((0, 0, 96, 48))
    wanted: list[tuple[str, list[Any], list[Any], dict[str, Any]]] = [
        (f"w11 {film} w12 w13", [short], [], {}),
        (f"w11 {film} w12 w13", [long], [], {"keep": 2, "method": "uniform"}),
        (f"w11 {film} w12 {span} w13 {film} w14", [long, short], [image], {"keep": 0.4}),
        (f"w11 {film} {film} w12", [short, short], [], {"keep": 0.5, "method": "temporal"}),
        (f"w15 {film} w12", [long], [], {"keep": 0.3, "method": "vidcom2"}),
        (f"w15 {film} w12", [long], [], {"keep": 0.35, "method": {"name": "divprune", "frames": "even"}}),
        (f"w15 {film} w12", [long], [], {"keep": 0.5, "method": "downsample"}),
    ]
    prompts, expected = [], []
    for text, clips, images, options in wanted:
        prompt, inputs = clip_prompt(qwen, text, clips, images, **options)
        prompts.append(prompt)
        expected.append(inputs)
    for answer, inputs, (_, _, _, options) in zip(qwen.answers(prompts), expected, wanted, strict=True):
        method = options.get("method", "divprune")
        given = dict(method) if isinstance(method, dict) else {"name": method}
        qwen.expect(answer, inputs, vlmprune.list_methods()[given.pop("name")](keep=options.get("keep", 0.25), **given))
