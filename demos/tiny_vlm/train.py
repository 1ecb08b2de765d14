"""Train the bundled pair from scratch, in stages that can be stopped and resumed.

    python -m demos.tiny_vlm.train --work DIR                 everything
    python -m demos.tiny_vlm.train --work DIR --stage tower   one stage
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .tower import train_tower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, optimizer state and logs")
    parser.add_argument("--stage", choices=("all", "tower"), default="all")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--more", type=float, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    train_tower(args.work, args.minutes, more=args.more)


if __name__ == "__main__":
    main()
