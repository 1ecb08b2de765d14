"""Photographs that installed packages ship, each in one split only: backgrounds for scenes that are not even.

Nothing is downloaded or copied: a photograph is read from the package it lies in. Validation and test need
scikit-image alone, which vlmprune depends on; training needs scikit-learn and matplotlib too, for nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from vlmprune.errors import VlmpruneError
from vlmprune.inputs.images import read_image

LONGEST = 640  # pixels of a photograph's longer side that are kept


@dataclass(frozen=True)
class Photograph:
    """A file of a package, and on what terms it may be used."""

    name: str
    split: str
    package: str
    file: str
    licence: str

    @property
    def path(self) -> Path:
        """Where it lies; the package itself is not imported.

        Raises:
            VlmpruneError: the package is missing, or the file in it.
        """
        spec = find_spec(self.package)
        places = [Path(place) / self.file for place in (spec and spec.submodule_search_locations) or ()]
        for place in places:
            if place.exists():
                return place
        raise VlmpruneError(
            f"The photograph {self.name!r} is not there: install the package that ships it, {self.package!r}."
        )


_SKIMAGE = {
    "train": {
        "astronaut.png": "public domain (NASA)",
        "cell.png": "CC0 (Paul Müller)",
        "chelsea.png": "CC0 (Stefan van der Walt)",
        "clock_motion.png": "public domain (Stefan van der Walt)",
        "grass.png": "CC0 (linolafett)",
        "hubble_deep_field.jpg": "public domain (NASA)",
        "ihc.png": "no known copyright restrictions (CMMI)",
        "retina.jpg": "CC0 (Mikael Häggström)",
    },
    "validation": {
        "brick.png": "CC0 (cc0textures.com)",
        "camera.png": "CC0 (Lav Varshney)",
        "coins.png": "no known copyright restrictions (Brooklyn Museum)",
    },
    "test": {
        "coffee.png": "CC0 (Rachel Michetti)",
        "gravel.png": "CC0 (cc0textures.com)",
        "moon.png": "as scikit-image ships it (BSD-3-Clause)",
        "rocket.jpg": "public domain (SpaceX)",
    },
}

PHOTOGRAPHS = (
    *(
        Photograph(Path(file).stem, split, "skimage", f"data/{file}", licence)
        for split, files in _SKIMAGE.items()
        for file, licence in files.items()
    ),
    Photograph(
        "grace_hopper", "train", "matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "public domain (US Navy)"
    ),
    Photograph("china", "train", "sklearn", "datasets/images/china.jpg", "CC BY (Yann Forget)"),
    Photograph("flower", "train", "sklearn", "datasets/images/flower.jpg", "CC BY (dany13)"),
)


def of_split(split: str) -> tuple[Photograph, ...]:
    """A split's photographs, in a fixed order."""
    return tuple(one for one in PHOTOGRAPHS if one.split == split)


@cache
def pixels_of(photograph: Photograph) -> np.ndarray:
    """Its pixels, uint8 (height, width, 3), the longer side at most `LONGEST`."""
    image = read_image(photograph.path)
    image.thumbnail((LONGEST, LONGEST))
    return np.asarray(image.convert("RGB"))
