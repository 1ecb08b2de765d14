"""What `find_sinks` found: numbers for a machine, a table and a plot for people."""

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..errors import VlmpruneError
from ..flow.sinks import FIRST_LAYER, Separation, separation
from .plot import draw
from .sample import SampleSinks


@dataclass(frozen=True)
class SinkReport:
    """The sinks of a batch: `dims` of the model (empty where none were found), the threshold `tau`, and each sample."""

    dims: tuple[int, ...]
    tau: float
    samples: list[SampleSinks]

    @property
    def separation(self) -> Separation:
        """How phi is spread over all tokens and layers from 2 on; real sinks leave almost nothing in between."""
        return separation(torch.cat([sample.phi[FIRST_LAYER:].flatten() for sample in self.samples]), self.tau)

    @property
    def notes(self) -> list[str]:
        """Warnings for the reader."""
        if not self.dims:
            return [
                f"no sink dimensions found: first tokens reach tau {self.tau:.2f} in none, so there are no sinks; phi "
                "is the largest over all dimensions"
            ]
        if not self.separation.bimodal:
            return ["phi is not bimodal: what lies above tau may be the upper end of one cloud, not sinks"]
        return []

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "sink_dims": list(self.dims),
            "tau": self.tau,
            "separation": {**vars(self.separation), "bimodal": self.separation.bimodal},
            "samples": [sample.to_dict() for sample in self.samples],
            "notes": self.notes,
        }

    def __str__(self) -> str:
        spread = self.separation
        lines = [
            ("sink dimensions", ", ".join(map(str, self.dims)) or "none found"),
            ("tau", f"{self.tau:.2f}"),
            ("phi", f"{spread.bulk} below tau / 2, {spread.between} between, {spread.sinks} above"),
        ]
        for number, sample in enumerate(self.samples):
            counts = [len(found) for found in sample.visual_sinks]
            kinds = [sink.kind for sink in sample.secondary]
            lines += [
                (f"sample {number}", f"{len(sample.visual)} visual tokens of {sample.phi.shape[1]}"),
                ("  visual sinks", " ".join(map(str, counts)) + "  (per layer)"),
                ("  text sinks", " ".join(str(len(found)) for found in sample.text_sinks)),
                ("  gated heads", " ".join(str(len(found)) for found in sample.gated_heads)),
                ("  primary sink", f"token {sample.primary}, layers {sample.window.first} to {sample.window.last}"),
                ("  like it", f"{kinds.count('primary-like')} its whole window, {kinds.count('secondary')} secondary"),
            ]
        lines += [("note", note) for note in self.notes]
        return "\n".join(f"{name:<18}{value}" for name, value in lines)

    def plot(
        self, image: Image.Image | None = None, *, sample: int = 0, number: int = 0, layer: int | None = None
    ) -> Image.Image:
        """A heat map of phi on the image grid, the primary sink's norm, and the sinks of every layer.

        Args:
            image: shown under the heat map. sample, number: which sample, and which of its images.
            layer: whose phi; None is the highest over the layers from 2 on.
        Raises:
            VlmpruneError: the sample, image or layer does not exist.
        """
        if not 0 <= sample < len(self.samples) or not 0 <= number < len(self.samples[sample].images):
            raise VlmpruneError(
                f"number={number!r} and sample={sample!r} name no image; the samples have "
                f"{[len(one.images) for one in self.samples]} images, counted from 0."
            )
        last = self.samples[sample].layers - 1
        if layer is not None and (type(layer) is not int or not 0 <= layer <= last):
            raise VlmpruneError(f"layer must be an int from 0 to {last}, got {layer!r}.")
        return draw(self.samples[sample], self.dims, self.tau, image, number, layer)
