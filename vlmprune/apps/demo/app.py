"""The page around the tabs, and the server that shows it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import VlmpruneError

if TYPE_CHECKING:
    import gradio

    from .engine import Engine

LOOPBACK = ("127.0.0.1", "localhost", "::1")
log = logging.getLogger(__name__)
EXAMPLES = "vlmprune-demo-examples"  # the thread that computes them
PATIENCE = 20  # seconds for an example that is being computed when the page is closed
CACHE_SECONDS = (300, 1800)  # how often Gradio checks uploads, and the age at which it deletes one


def check_gradio() -> None:
    """Refuse to go on without Gradio 6."""
    # Before the import, which would send usage statistics.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError:
        raise VlmpruneError("the demo needs Gradio; install it with: pip install 'vlmprune[demo]'") from None
    if int(gradio.__version__.partition(".")[0]) < 6:
        raise VlmpruneError(f"the demo needs Gradio 6, not {gradio.__version__}; install vlmprune[demo]")


def build(engine: Engine) -> gradio.Blocks:
    """Build the page with all its tabs."""
    import gradio as gr

    from . import ask, caption, compare, plan, sinks
    from .page import QUEUE, html
    from .world import is_pair

    models = engine.models
    about = f"Model: {models.name}" + (f", guided by {models.small_name}." if models.small_name else ".")
    if is_pair(models):
        about = "Models: the bundled pair."
    with gr.Blocks(title="vlmprune", analytics_enabled=False, delete_cache=CACHE_SECONDS) as page:
        gr.HTML(html.head(about))
        with gr.Tabs():
            for tab in (ask, compare, sinks, caption, plan):
                with gr.Tab(tab.TITLE, id=tab.TITLE.lower()) as opened:
                    tab.build(engine, opened)
    page.queue(max_size=QUEUE, default_concurrency_limit=4)
    return page


def prepare(engine: Engine, closing: threading.Event) -> None:
    """Compute what the examples and the tabs open with, behind whoever asks something meanwhile, until `closing`."""
    from . import ask, caption, compare, plan, sinks
    from .thumbnails import THUMBNAILS

    try:
        steps = [partial(ask.drawn, engine, number) for number in range(len(THUMBNAILS))]
        steps += [partial(tab.opening, engine) for tab in (plan, sinks, caption, compare)]
        for step in steps:
            if closing.is_set():
                return
            step()
    except Exception as error:  # a visitor who opens that tab reads why
        log.warning("an example could not be computed: %s", error)


def check_address(host: str, port: int | None) -> None:
    """Refuse an address before Gradio does, which retries a bad host for minutes. Port None is any free port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as one:
            # As the server does: a port whose last connections are in TIME_WAIT counts as free.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
    except OSError as error:
        raise unserved(host, port, error) from None


def unserved(host: str, port: int | None, error: OSError) -> VlmpruneError:
    """The error for an address on which nothing can listen."""
    where = host if port is None else f"{host}, port {port}"
    reason = error.strerror or " ".join(str(error).split())
    return VlmpruneError(f"nothing can be served at {where} ({reason}); choose another --host or --port")


@contextmanager
def served(
    engine: Engine, *, host: str = LOOPBACK[0], port: int | None = None, share: bool = False
) -> Iterator[tuple[str, str | None]]:
    """Serve the page within the block; yields its local address, and the public one with `share`."""
    check_gradio()
    from .page import CSS, QUEUE, SCRIPT, theme
    from .upload import CLIP_LIMITS

    with tempfile.TemporaryDirectory(prefix="vlmprune-demo-", ignore_cleanup_errors=True) as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # the default is a folder in /tmp that all of Gradio's apps share
        page = build(engine)
        try:
            _, local, public = page.launch(
                server_name=host,
                server_port=port,
                share=share,
                quiet=True,
                prevent_thread_lock=True,
                show_error=False,  # only the text of gr.Error reaches the page
                ssr_mode=False,
                mcp_server=False,
                enable_monitoring=False,
                max_threads=QUEUE + 16,  # everyone who waits for the models holds one
                max_file_size=CLIP_LIMITS.bytes,
                allowed_paths=[],
                footer_links=["api"],
                theme=theme(),
                css=CSS,
                js=SCRIPT,
            )
        except OSError as error:  # another process took the port meanwhile
            raise unserved(host, port, error) from None
        closing = threading.Event()
        examples = threading.Thread(target=prepare, args=(engine, closing), name=EXAMPLES, daemon=True)
        examples.start()
        try:
            yield local, public
        finally:
            closing.set()
            page.close(verbose=False)
            # A thread that is inside torch when Python ends can end it with a crash; large models are not waited for.
            examples.join(PATIENCE)


def serve(engine: Engine, say: Callable[[str], None], **where: Any) -> None:
    """Serve the page until Ctrl-C or SIGTERM, then delete the uploads."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.default_int_handler)
    try:
        with served(engine, **where) as (local, public):
            say(f"the demo is at {local} (stop it with Ctrl-C)")
            if public:
                say(f"and, for everybody who knows the address, at {public}")
            threading.Event().wait()
    except KeyboardInterrupt:
        say("stopped")
    if any(thread.name == EXAMPLES for thread in threading.enumerate()):  # a large model's, see `served`
        sys.stdout.flush()
        os._exit(0)
