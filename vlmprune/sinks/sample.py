"""What `find_sinks` found in one sample.

Shapes: S tokens of a sample's prompt (padding left out), V its visual tokens, H heads, L layers.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..accounting.report import span_dict
from ..flow.locate import ImageSpan
from ..flow.sinks import ALIKE, FIRST_LAYER, ActiveWindow, SecondarySink, eligible_layers


@dataclass(frozen=True)
class SampleSinks:
    """The sinks of one sample.

    `phi` [L, S]: how far each token entering a layer sticks out in the sink dimensions, or in any dimension if there
    are none. `visual` [V]: positions of its visual tokens in the S. `images`: their grids. `sinks` [L, S]: phi >= tau,
    from layer 2 on. `primary`: position of the primary sink, `norms` [L + 1] its norm entering every layer and leaving
    the last, `window` between the largest rise and the largest drop. `cosines` [L, S]: with the primary sink;
    `secondary`: tokens of the same direction. `image_attention`, `sink_share`, `gated` [L, H]: of text rows after
    the image, mean attention to it, the fraction of it on visual sinks, the fraction of rows that pass VAR's gate; 0 in
    layers that do not attend.
    """

    phi: Tensor
    visual: Tensor
    images: list[ImageSpan]
    sinks: Tensor
    primary: int
    norms: Tensor
    window: ActiveWindow
    cosines: Tensor
    secondary: list[SecondarySink]
    image_attention: Tensor
    sink_share: Tensor
    gated: Tensor

    @property
    def layers(self) -> int:
        return self.phi.shape[0]

    @property
    def visual_sinks(self) -> list[list[int]]:
        """Per layer, indices into the sample's visual tokens, 0..V-1."""
        return [row[self.visual].nonzero()[:, 0].tolist() for row in self.sinks]

    @property
    def text_sinks(self) -> list[list[int]]:
        """Per layer, positions in the prompt."""
        text = torch.ones(self.sinks.shape[1], dtype=torch.bool)
        text[self.visual] = False
        return [(row & text).nonzero()[:, 0].tolist() for row in self.sinks]

    @property
    def gated_heads(self) -> list[list[int]]:
        """Per layer, heads that VAR would change in at least one row; none outside layers 2..L-2."""
        eligible = eligible_layers(self.layers)
        return [row.nonzero()[:, 0].tolist() if i in eligible else [] for i, row in enumerate(self.gated)]

    @property
    def agreement(self) -> float | None:
        """Of the (layer, token) pairs that phi or the cosine calls a sink, the fraction that both do; None without any.

        Counted in the layers of the primary sink's window, the primary sink itself left out.
        """
        layers = slice(max(FIRST_LAYER, self.window.first), self.window.last + 1)
        by_phi, by_cosine = self.sinks[layers].clone(), self.cosines[layers].abs() > ALIKE
        by_phi[:, : self.primary + 1] = False
        by_cosine[:, : self.primary + 1] = False
        either = int((by_phi | by_cosine).sum())
        return int((by_phi & by_cosine).sum()) / either if either else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "tokens": self.phi.shape[1],
            "visual": self.visual.tolist(),
            "images": [span_dict(span) for span in self.images],
            "phi": _rounded(self.phi),
            "visual_sinks": self.visual_sinks,
            "text_sinks": self.text_sinks,
            "primary": {
                "position": self.primary,
                "norms": _rounded(self.norms),
                "window": [self.window.first, self.window.last],
            },
            "secondary": [vars(sink) for sink in self.secondary],
            "image_attention": _rounded(self.image_attention),
            "sink_share": _rounded(self.sink_share),
            "gated": _rounded(self.gated),
            "gated_heads": self.gated_heads,
            "agreement": self.agreement,
        }


def _rounded(values: Tensor) -> Any:
    """Nested lists with 5 digits, enough to draw and to compare."""
    return values.double().round(decimals=5).tolist()
