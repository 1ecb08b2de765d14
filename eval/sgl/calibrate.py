"""The exit's threshold for the bundled pair, from validation questions only, with the whole trade-off curve.

python -m eval.sgl.calibrate --questions 50 --out eval/sgl/results/calibration.json     # of each family; and a PNG
"""

from __future__ import annotations

import argparse
from pathlib import Path

import vlmprune
from eval.provenance import provenance, write_record
from eval.tasks.scenes import Scenes
from vlmprune.harness.baselines import image_of, scored_families
from vlmprune.harness.measure import backend
from vlmprune.tiny.scenes import benchmark


def main() -> None:
    """Calibrate, and write the curve as JSON and as a picture beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=50, help="of each family")
    parser.add_argument("--max-accuracy-loss", type=float, default=0.03)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    large, small, processor = vlmprune.load_tiny()
    data = [
        (image_of(scene), question.text, question.answer)
        for family in scored_families()
        for scene, question in benchmark(family, args.questions, "validation")
    ]
    found = vlmprune.SGL(small, keep=0.18, layer=0).calibrate(
        large,
        data,
        processor=processor,
        max_accuracy_loss=args.max_accuracy_loss,
        keeps=[0.18, 0.09],
        cost="flops",
        max_new_tokens=Scenes.max_new_tokens,
    )
    about = provenance(model="the bundled pair", backend=backend(large), split="validation", questions=len(data))
    write_record({"about": about, **found.to_dict()}, args.out)
    found.plot(args.out.with_suffix(".png"))
    print(found)


if __name__ == "__main__":
    main()
