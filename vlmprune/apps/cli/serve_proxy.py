"""``vlmprune serve-proxy``: an OpenAI-compatible server that prunes images before an engine sees them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Any

import typer

from ...errors import VlmpruneError
from ...harness.format import note, spinner
from ...harness.models import load_models, options_of, quiet
from ...harness.parse import number
from .options import GuideOption, HostOption, TrustOption, check_port

NEEDED = ("fastapi", "uvicorn", "httpx", "prometheus_client")


def serve_proxy(
    engine: Annotated[str, typer.Option("--engine", metavar="URL", help="The vLLM server behind, without /v1.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="ID_OR_DIR",
            show_default="the bundled large one",
            help="The engine's model; only its vision tower is loaded here.",
        ),
    ] = None,
    guide: GuideOption = None,
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="What chooses; it must need no language model.")
    ] = "sgl",
    keep: Annotated[
        str, typer.Option("--keep", metavar="X", help="Fraction or number of visual tokens kept unless a request says.")
    ] = "0.25",
    exit_at: Annotated[
        float | None,
        typer.Option(
            "--exit-at", metavar="S", show_default="never", help="The guide answers alone where it is this sure."
        ),
    ] = None,
    positions: Annotated[
        str,
        typer.Option("--positions", metavar="MODE", help="'original' with the plugin in the engine, else 'compact'."),
    ] = "original",
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", help="The port to listen on.")] = 8001,
    engine_key: Annotated[
        str | None, typer.Option("--engine-key", envvar="VLMPRUNE_ENGINE_KEY", help="Sent to the engine as a token.")
    ] = None,
    image_urls: Annotated[
        bool, typer.Option("--allow-image-urls", help="Fetch images from the web; off by default, files never.")
    ] = False,
    embeddings: Annotated[
        bool, typer.Option("--allow-embeddings", help="Take images that clients encoded themselves; off by default.")
    ] = False,
    requests: Annotated[int, typer.Option("--max-requests", help="Requests at once; more are told to return.")] = 64,
    images: Annotated[int, typer.Option("--max-images", help="Images of a request.")] = 8,
    pixels: Annotated[float, typer.Option("--max-megapixels", metavar="MP", help="Of an image.")] = 24,
    request_pixels: Annotated[
        float,
        typer.Option(
            "--max-request-megapixels",
            metavar="MP",
            help="Of a request's images, and unpacked at once: about 12 MB of memory for each.",
        ),
    ] = 48,
    open_pixels: Annotated[
        float,
        typer.Option(
            "--max-open-megapixels", metavar="MP", help="Of all requests that wait for guide and tower; then 503."
        ),
    ] = 256,
    body: Annotated[float, typer.Option("--max-megabytes", metavar="MB", help="Of a request.")] = 32,
    open_bodies: Annotated[
        float, typer.Option("--max-open-megabytes", metavar="MB", help="Of all requests that are open; then 503.")
    ] = 256,
    text: Annotated[int, typer.Option("--max-text", metavar="N", help="Characters of a request's texts.")] = 1_000_000,
    batch: Annotated[int, typer.Option("--batch", help="The most images guide and tower see at once.")] = 8,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds the engine may be silent.")] = 120.0,
    trust_remote_code: TrustOption = False,
) -> None:
    """Serve an OpenAI-compatible API in front of a vLLM server. Ctrl-C or SIGTERM finishes what is open, then ends."""
    check_port(port)
    if not engine.startswith(("http://", "https://")):
        raise VlmpruneError(f"--engine {engine!r} is no web address; give one like http://127.0.0.1:8000")
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise VlmpruneError(f"serve-proxy needs {', '.join(missing)}; install vlmprune[vllm]")
    takes = options_of(method)
    options: dict[str, Any] = {"keep": number("--keep", keep), "positions": positions, "exit_at": exit_at}
    if exit_at is not None and "exit_at" not in takes:
        raise VlmpruneError(f"the method {method!r} takes no --exit-at; leave it out")
    from ...serving.chat import Limits
    from ...serving.encoder import Encoder
    from ...serving.proxy import ProxySettings, create_app, serve

    limits = Limits(
        requests=requests,
        engine=timeout,
        images=images,
        pixels=_counted("--max-megapixels", pixels, 10**6),
        request_pixels=_counted("--max-request-megapixels", request_pixels, 10**6),
        open_pixels=_counted("--max-open-megapixels", open_pixels, 10**6),
        body=_counted("--max-megabytes", body, 2**20),
        open_bodies=_counted("--max-open-megabytes", open_bodies, 2**20),
        text=text,
    )
    with quiet(), spinner("loading"):
        # The bundled pair, or a guide of the user's: the same rules as everywhere.
        pair = load_models(None, guide, trust_remote_code=trust_remote_code)
        if "guide" in takes:
            if model is not None and guide is None:
                raise VlmpruneError(f"the method {method!r} needs a small model beside --model; name one with --guide")
            options |= {"guide": pair.small, "guide_processor": pair.small_processor}
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None and name in takes}
        encoder = (
            Encoder(pair.model, method, processor=pair.processor, **given)
            if model is None
            else Encoder(model, method, **given)
        )
        settings = ProxySettings(
            engine.rstrip("/").removesuffix("/v1"),
            engine_key,
            exit_at,
            image_urls=image_urls,
            embeddings=embeddings,
            batch=batch,
            limits=limits,
        )
        app = create_app(encoder, settings)
    note(f"listening on http://{host}:{port}/v1")
    serve(app, host, port)


def _counted(option: str, value: float, unit: int) -> int:
    if not 0 < value < 1e9:
        raise VlmpruneError(f"{option} {value:g} is out of range; give a number above 0")
    return max(1, int(value * unit))
