"""How right an answer is, and how sure a guide is of its own."""

from collections.abc import Sequence


def plain(answer: str) -> str:
    """An answer without what exact match should not see: case, outer spaces, a closing full stop."""
    return " ".join(answer.lower().split()).removesuffix(".").rstrip()


def exact_match(answer: str, truths: str | Sequence[str]) -> float:
    """1.0 where the answer is one of the right ones, else 0.0."""
    right = [truths] if isinstance(truths, str) else truths
    return float(any(plain(answer) == plain(truth) for truth in right))


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (letter != other))
    return row[-1]


def anls(answer: str, truths: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one answer (Biten et al., ICCV 2019): the best truth counts.

    Texts are compared in lower case with single spaces, and the distance is divided by the length of the longer one as
    it was given, in upper case ("ß" counts twice), as the challenge's script does.

    Returns:
        1 - distance / length, 0 where that is below the threshold.
    """

    def distance(truth: str) -> float:
        longest = max(len(truth.upper()), len(answer.upper()))
        texts = (" ".join(text.lower().split()) for text in (answer, truth))
        return edit_distance(*texts) / longest if longest else 0.0

    best = 1 - min(map(distance, truths), default=1.0)
    return best if best >= threshold else 0.0


def agreement(given: str, people: Sequence[str]) -> float:
    """VQA accuracy (Antol et al., ICCV 2015) of normalised answers: the mean over the people of min(1, matches among
    the others / 3); a single one is compared with itself."""
    if len(people) == 1:
        return float(given == people[0])
    matches = people.count(given)
    left_out = [matches - (person == given) for person in people]
    return sum(min(1.0, others / 3) for others in left_out) / len(people)


def sureness(confidence: float, consistency: float) -> float:
    """SGL's S, their mean: what `exit_at` is compared with (arXiv 2412.03324, section 3.2)."""
    return (confidence + consistency) / 2
