"""Train the bundled pair from scratch, in stages that can be stopped and resumed.

    python -m demos.tiny_vlm.train --work DIR                   everything, then export into the package
    python -m demos.tiny_vlm.train --work DIR --stage small     one stage; large and small may run side by side
    python -m demos.tiny_vlm.train --work DIR --stage large --more 30   30 minutes on top of a finished run
    python -m demos.tiny_vlm.train --work DIR --stage export    moving averages as they stand, into the package
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import vlmprune.tiny

from .common import State
from .language import train_language
from .pair import build_model, export, export_processor
from .tower import train_tower


def export_pair(work: Path) -> None:
    """Write both models' moving averages and the processor into the package."""
    for which in ("large", "small"):
        model = build_model(which)  # the saved state holds the tower too
        state = State(model, 0.0, work / which)
        if not state.load():
            raise SystemExit(f"There is no training state of the {which} model in {work}; train it first.")
        state.swap()
        export(model, vlmprune.tiny.WEIGHTS / which)
    export_processor(vlmprune.tiny.WEIGHTS / "processor")


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, optimizer state and logs")
    parser.add_argument("--stage", choices=("all", "tower", "large", "small", "export"), default="all")
    parser.add_argument("--minutes", type=float, default=30, help="wall clock of each stage")
    parser.add_argument("--more", type=float, default=0, help="minutes on top of a finished stage")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.stage in ("all", "tower"):
        train_tower(args.work, args.minutes, more=args.more)
    for which in ("large", "small"):
        if args.stage in ("all", which):
            train_language(args.work, which, args.minutes, more=args.more)
    if args.stage in ("all", "export"):
        export_pair(args.work)


if __name__ == "__main__":
    main()
