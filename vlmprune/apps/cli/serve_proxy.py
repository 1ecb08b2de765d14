"""``vlmprune serve-proxy``: an OpenAI-compatible server that prunes images before an engine sees them."""

from importlib.util import find_spec
from typing import Annotated, Any

import typer

from ...errors import VlmpruneError
from ...harness.format import note, spinner
from ...harness.models import load_models, make, options_of, quiet
from . import options

NEEDED = ("fastapi", "uvicorn", "httpx", "prometheus_client")


def _size(unit: int, metavar: str, text: str, least: int = 1) -> Any:
    """An option that takes megapixels or megabytes; the command gets pixels or bytes."""

    def read(value: str) -> int:
        if 0 < float(value) < 1e9:
            return max(1, int(float(value) * unit))
        if float(value) == 0 == least:
            return 0
        raise ValueError

    return options.parsed(text, "a number above 0" if least else "a number of 0 or more", read, metavar)


def _seconds(text: str) -> Any:
    """An option that takes seconds."""

    def read(value: str) -> float:
        if 0 < float(value) < 1e9:
            return float(value)
        raise ValueError

    return options.parsed(f"Seconds that {text[0].lower()}{text[1:]}", "a number above 0", read, "S")


def serve_proxy(
    engine: Annotated[str, options.text("URL", "The vLLM server behind, without /v1.")],
    model: Annotated[
        str | None,
        options.text(
            "ID_OR_DIR",
            "The engine's model; only its vision tower is loaded here.",
            shown="the bundled large one",
        ),
    ] = None,
    guide: options.Guide = None,
    method: Annotated[str, options.text("NAME", "What chooses; it must need no language model.")] = "sgl",
    keep: Annotated[float, options.amount("X", "Fraction or number of visual tokens kept by default.")] = 0.25,
    exit_at: Annotated[
        float | None, options.amount("S", "The guide answers alone where it is this sure.", shown="never")
    ] = None,
    positions: Annotated[
        str, options.text("MODE", "'original' with the plugin in the engine, else 'compact'.")
    ] = "original",
    host: options.Host = "127.0.0.1",
    port: Annotated[int, options.count("The port to listen on.", most=65_535)] = 8001,
    engine_key: Annotated[
        str | None, typer.Option(envvar="VLMPRUNE_ENGINE_KEY", help="Sent to the engine as a token.")
    ] = None,
    allow_image_urls: Annotated[
        bool, typer.Option("--allow-image-urls", help="Fetch images from the web; off by default, files never.")
    ] = False,
    allow_embeddings: Annotated[
        bool, typer.Option("--allow-embeddings", help="Take images that clients encoded themselves; off by default.")
    ] = False,
    rank_every_turn: Annotated[
        bool,
        typer.Option(
            "--rank-every-turn", help="Choose again for every question of a conversation; no prefix is found again."
        ),
    ] = False,
    access_log: Annotated[str, options.text("FORMAT", "Of the lines on stderr: 'off', 'text' or 'json'.")] = "text",
    max_requests: Annotated[int, options.count("Requests at once; others get status 503.")] = 64,
    max_images: Annotated[int, options.count("Images of a request.")] = 8,
    max_megapixels: Annotated[int, _size(10**6, "MP", "Of an image.")] = 24,
    max_request_megapixels: Annotated[
        int, _size(10**6, "MP", "Of a request's images, and unpacked at once: about 12 MB of memory for each.")
    ] = 48,
    max_open_megapixels: Annotated[
        int, _size(10**6, "MP", "Of all requests that wait for guide and tower; then 503.")
    ] = 256,
    max_megabytes: Annotated[int, _size(2**20, "MB", "Of a request.")] = 32,
    max_open_megabytes: Annotated[int, _size(2**20, "MB", "Of all requests that are open; then 503.")] = 256,
    max_text: Annotated[int, options.count("Characters of a request's texts, where it has images.")] = 1_000_000,
    max_tokens: Annotated[
        int | None, options.count("The longest answer, where a request has images.", shown="the engine's own")
    ] = None,
    max_values: Annotated[int, options.count("Values in a request's JSON.")] = 500_000,
    cache: Annotated[
        int, _size(2**20, "MB", "For images seen before and what was chosen of them; 0 for none.", 0)
    ] = 512,
    batch: Annotated[int, options.count("The most requests guide and tower see at once.")] = 8,
    timeout: Annotated[float, _seconds("The engine may be silent, before and within a stream.")] = 120.0,
    answer_timeout: Annotated[float, _seconds("An answer that comes whole may take.")] = 3600.0,
    prepare_timeout: Annotated[float, _seconds("Guide and tower may take, their queues included.")] = 60.0,
    upload_timeout: Annotated[float, _seconds("A request may take to arrive.")] = 30.0,
    drain_timeout: Annotated[float, _seconds("Open requests may take after Ctrl-C or SIGTERM.")] = 30.0,
    trust_remote_code: options.Trust = False,
) -> None:
    """Serve an OpenAI-compatible API in front of a vLLM server. Ctrl-C or SIGTERM finishes what is open, then ends."""
    if not engine.startswith(("http://", "https://")):
        raise VlmpruneError(f"--engine must be a web address like http://127.0.0.1:8000, got {engine!r}")
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise VlmpruneError(f"serve-proxy needs {', '.join(missing)}; install vlmprune[vllm]")
    takes = options_of(method)
    given: dict[str, Any] = {"keep": keep, "positions": positions}
    given = {name: value for name, value in given.items() if name in takes} | {"exit_at": exit_at}
    make(method, **given)  # report bad options before loading anything
    if model is not None and guide is None and "guide" in takes:
        raise VlmpruneError(f"the method {method!r} needs a small model beside --model; name one with --guide")
    from ...serving.chat import Limits
    from ...serving.encoder import Encoder
    from ...serving.fields import MOST_TOKENS
    from ...serving.proxy import ProxySettings, create_app, serve

    limits = Limits(
        requests=max_requests,
        values=max_values,
        tokens=MOST_TOKENS if max_tokens is None else max_tokens,
        cache=cache,
        engine=timeout,
        answer=answer_timeout,
        prepare=prepare_timeout,
        upload=upload_timeout,
        drain=drain_timeout,
        images=max_images,
        pixels=max_megapixels,
        request_pixels=max_request_megapixels,
        open_pixels=max_open_megapixels,
        body=max_megabytes,
        open_bodies=max_open_megabytes,
        text=max_text,
    )
    settings = ProxySettings(
        engine.rstrip("/").removesuffix("/v1"),
        engine_key,
        exit_at,
        image_urls=allow_image_urls,
        embeddings=allow_embeddings,
        batch=batch,
        keep_choices=not rank_every_turn,
        access_log=access_log,
        limits=limits,
    )
    with quiet(), spinner("loading"):
        # The bundled pair, or the user's guide, as in the other commands.
        pair = load_models(None, guide, trust_remote_code=trust_remote_code)
        chooser = make(method, pair, **given)
        encoder = Encoder(pair.model, chooser, processor=pair.processor) if model is None else Encoder(model, chooser)
        app = create_app(encoder, settings)
    note(f"listening on http://{host}:{port}/v1")
    serve(app, host, port)
