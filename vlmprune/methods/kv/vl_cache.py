"""VL-Cache (Tu et al., ICLR 2025, arXiv 2410.23317): the text after the image votes."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import CacheCut, LayerEntries


@dataclass(frozen=True)
class VLCache(CacheCut):
    """Keeps the entries of the cache that the text after the image attends to most, mean over heads: the same ones in
    every head.

    Where no text follows the image, the last token votes. `budgets="attention"` spreads `keep` over layers by TGV-KV's
    rule (arXiv 2606.03075), `"prefix"` by PrefixKV's (arXiv 2412.03409); see `CacheCut`.

    Departures from the official code: none was published. The paper spreads its budget by how sparse a layer's
    attention is, and holds a tenth of it for the last tokens; here text stays anyway, unless `tokens="all"`.

    When: long answers about large images, with any attention kernel that takes masks. Compare it with `kv-random`.
    """

    name: ClassVar[str] = "vl-cache"

    def score(self, entries: LayerEntries) -> Tensor:
        return entries.attention_from(entries.asking()).mean(dim=1, keepdim=True)
