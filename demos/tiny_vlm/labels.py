"""What every patch of a scene shows: the truth that the pair's tower and language models are trained on."""

from __future__ import annotations

import numpy as np

from .scenes import Scene, coverage
from .vocabulary import PATCH

LEAST = 0.12  # of a patch that a thing must cover


def patch_cover(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """How much of each patch of the window its thing covers, and the index of that thing.

    Both are (rows, columns); where no thing covers `LEAST` of the patch, the first is that and the second -1.
    """
    row, col, rows, cols = scene.window
    best = np.full((rows, cols), LEAST, dtype=np.float32)
    owner = np.full((rows, cols), -1, dtype=np.int64)
    for i, thing in enumerate(scene.things):
        x0, y0, x1, y1 = thing.box
        x0, x1, y0, y1 = x0 - col * PATCH, x1 - col * PATCH, y0 - row * PATCH, y1 - row * PATCH
        r0, r1, c0, c1 = y0 // PATCH, -(-y1 // PATCH), x0 // PATCH, -(-x1 // PATCH)
        local = np.zeros(((r1 - r0) * PATCH, (c1 - c0) * PATCH), dtype=np.float32)
        local[y0 - r0 * PATCH : y1 - r0 * PATCH, x0 - c0 * PATCH : x1 - c0 * PATCH] = coverage(
            thing.shape, thing.width, thing.height, thing.angle
        )
        cover = local.reshape(r1 - r0, PATCH, c1 - c0, PATCH).mean((1, 3))
        better = cover > best[r0:r1, c0:c1]
        owner[r0:r1, c0:c1][better] = i
        best[r0:r1, c0:c1][better] = cover[better]
    return best, owner
