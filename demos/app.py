"""The demo as hosts of Gradio apps start it: `python demos/app.py`, the bundled pair, on the host's address.

`GRADIO_SERVER_NAME` and `GRADIO_SERVER_PORT` say where it listens; 127.0.0.1 and a free port by default.
"""

import os

from vlmprune.apps.demo.app import check_gradio, serve
from vlmprune.apps.demo.engine import Engine
from vlmprune.harness.models import load_models

if __name__ == "__main__":
    check_gradio()
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    port = os.environ.get("GRADIO_SERVER_PORT")
    serve(
        Engine(load_models(None, None, trust_remote_code=False)),
        lambda line: print(line, flush=True),
        host=host,
        port=int(port) if port else None,
    )
