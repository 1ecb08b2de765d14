"""Train the bundled pair from scratch, in stages that can be stopped and resumed.

    python -m demos.tiny_vlm.train --work DIR                   everything, then export into the package
    python -m demos.tiny_vlm.train --work DIR --stage small     one stage; large and small may run side by side
    python -m demos.tiny_vlm.train --work DIR --stage large --more 30   30 minutes on top of a finished run
    python -m demos.tiny_vlm.train --work DIR --stage export    moving averages as they stand, into the package
    python -m demos.tiny_vlm.train --work DIR --stage small --dropping 0        a control that never saw fewer tokens
    python -m demos.tiny_vlm.train --work DIR --stage export --to DIR2          what there is of both, into DIR2

Each stage keeps its state in DIR.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import vlmprune.tiny

from .common import State
from .language import DROP_FRACTION, train_language
from .pair import build_model, export, export_processor
from .tower import train_tower

PAIR = ("large", "small")


def export_trained(work: Path, folder: Path | None) -> None:
    """Write both models' moving averages and the processor into the package, or those trained in `work` into a folder,
    each with the processor beside its weights."""
    target = folder or vlmprune.tiny.WEIGHTS
    for name in PAIR if folder is None else [name for name in PAIR if (work / name).exists()]:
        model = build_model(name)  # the saved state holds the tower too
        state = State(model, 0.0, work / name)
        if not state.load():
            raise SystemExit(f"There is no training state of the {name} model in {work}; train it first.")
        state.swap()
        export(model, target / name)
        export_processor(target / ("processor" if folder is None else name))


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, optimizer state and logs")
    parser.add_argument("--stage", choices=("all", "tower", "large", "small", "export"), default="all")
    parser.add_argument("--minutes", type=float, default=30, help="wall clock of each stage")
    parser.add_argument("--more", type=float, default=0, help="minutes on top of a finished stage")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dropping", type=float, default=DROP_FRACTION, help="fraction of batches that lose tokens")
    parser.add_argument("--to", type=Path, help="where to export to; the package if not given")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.stage in ("all", "tower"):
        train_tower(args.work, args.minutes, more=args.more)
    for which in PAIR:
        if args.stage in ("all", which):
            train_language(args.work, which, args.minutes, more=args.more, dropping=args.dropping)
    if args.stage in ("all", "export"):
        export_trained(args.work, args.to)


if __name__ == "__main__":
    main()
