"""Everything about vlmprune that only a GPU can show, in one command of at most five minutes.

It needs a checkout, torch, triton and transformers, and nothing is installed or downloaded. Every stage writes
DIR/STAGE.json as its points come; summary.md says in short what passed.

    PYTHONPATH=. python -m eval.gpu --out DIR                  all stages, most telling first
    PYTHONPATH=. python -m eval.gpu --out DIR --only kernels   one again
    PYTHONPATH=. python -m eval.gpu --out DIR --tiny           the whole script in small, on a CPU
    PYTHONPATH=. python -m eval.gpu --summary DIR              what a run came to
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()
SECONDS = 290  # of all stages, start included
TINY_TIMES = 4  # a CPU is slow, and busy with other tests


def main() -> int:
    """Run the stages; the exit status is 1 where a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--only", action="append", metavar="STAGE", help="only this stage; may be given several times")
    parser.add_argument("--tiny", action="store_true", help="small shapes on the CPU, kernels in Triton's interpreter")
    parser.add_argument("--summary", type=Path, metavar="DIR", help="print what the records in DIR say, and end")
    parser.add_argument("--order", help=argparse.SUPPRESS)  # how a group's process is restarted
    args = parser.parse_args()
    order = json.loads(args.order) if args.order else None
    if args.tiny or (order and order["setting"]["tiny"]):
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Looking for a GPU without touching it, so that forked processes can still use it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

    try:
        from .processes import run_group
        from .run import STAGES, run_stages, stage_of, summary
        from .stage import StageSetting
    except ModuleNotFoundError as error:
        needs = "a checkout on PYTHONPATH, torch, triton, transformers, numpy, packaging, pillow and safetensors"
        parser.error(f"there is no module {error.name!r} here; this needs {needs}")

    if order:
        run_group(stage_of(order["stage"]), order["group"], StageSetting(**order["setting"]), order["sink"])
        return 0
    if args.summary:
        if not args.summary.is_dir():
            parser.error(f"--summary {args.summary} is not a folder; give the one that --out named")
        print(summary(args.summary))
        return 0
    if args.out is None:
        parser.error("--out is missing; name the folder for the records, or use --summary DIR")
    for name in args.only or ():
        if name not in STAGES:
            parser.error(f"there is no stage {name!r}; the stages are {', '.join(STAGES)}")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is a file; name a folder")
    args.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _stop)
    scale = TINY_TIMES if args.tiny else 1
    names = [name for name in STAGES if not args.only or name in args.only]
    return run_stages(names, args.out, tiny=args.tiny, ends=BEGAN + SECONDS * scale, scale=scale)


def _stop(*_: Any) -> None:
    """Leave through the blocks that end the groups' processes."""
    sys.exit(143)


if __name__ == "__main__":
    sys.exit(main())
