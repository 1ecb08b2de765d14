"""CIDEr, BLEU and ROUGE-L through pycocoevalcap, which is an optional extra: pip install "vlmprune[captions]"."""

from __future__ import annotations

from collections.abc import Sequence

from vlmprune.captioner.text import words
from vlmprune.errors import VlmpruneError


def text_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus scores of captions against one or more references each.

    Texts are lower-cased words without punctuation; the package's own tokenizer needs a Java program. CIDEr's document
    frequencies come from these references, so it compares methods on one set and means nothing across sets.

    Raises:
        VlmpruneError: the package is missing, or the numbers of captions and references differ.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise VlmpruneError(
            f"{error.name} is not installed; install it with pip install 'vlmprune[captions]'."
        ) from None
    if len(captions) != len(references) or not all(references):
        raise VlmpruneError(
            f"There are {len(captions)} captions and {len(references)} sets of references; give each caption its own."
        )
    said = {i: [" ".join(words(text))] for i, text in enumerate(captions)}
    wanted = {i: [" ".join(words(text)) for text in texts] for i, texts in enumerate(references)}
    bleu, _ = Bleu(4).compute_score(wanted, said, verbose=0)
    rouge, _ = Rouge().compute_score(wanted, said)
    cider, _ = Cider().compute_score(wanted, said)
    return {
        **{f"bleu_{n}": float(score) for n, score in enumerate(bleu, 1)},
        "rouge_l": float(rouge),
        "cider": float(cider),
    }
