"""The page around the tabs, and the server that shows it."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...errors import VlmpruneError

if TYPE_CHECKING:
    import gradio

    from .engine import Engine

LOOPBACK = ("127.0.0.1", "localhost", "::1")
CACHE_SECONDS = (300, 1800)  # how often Gradio checks uploads, and the age at which it deletes one
QUEUE = 64  # waiting users


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
    from .page import html

    models = engine.models
    about = f"Model: {models.name}" + (f"; small model: {models.small_name}." if models.small_name else ".")
    with gr.Blocks(title="vlmprune", analytics_enabled=False, delete_cache=CACHE_SECONDS) as page:
        gr.HTML(html.head(about))
        with gr.Tabs():
            for tab in (ask, compare, sinks, caption, plan):
                with gr.Tab(tab.TITLE, id=tab.TITLE.lower()):
                    tab.build(engine)
    page.queue(max_size=QUEUE, default_concurrency_limit=4)
    return page


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
    from .page import CSS, SCRIPT, theme
    from .upload import LARGEST_FILE

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
                max_file_size=LARGEST_FILE,
                allowed_paths=[],
                footer_links=["api"],
                theme=theme(),
                css=CSS,
                js=SCRIPT,
            )
        except OSError as error:  # another process took the port meanwhile
            raise unserved(host, port, error) from None
        try:
            yield local, public
        finally:
            page.close(verbose=False)


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
