"""Lists of reasons in a status: complete while they are short, bounded however many members there are."""

from __future__ import annotations

from collections.abc import Sequence

MAX_REASONS = 40
MAX_MISSING = 100


def limited_list(texts: Sequence[str], most: int = MAX_REASONS, more: int = 0) -> list[str]:
    """The first `most` texts, the last of them saying how many more there are, `more` not among `texts` included."""
    if len(texts) + more <= most:
        return list(texts)
    shown = list(texts[:most - 1])
    return [*shown, f'and {len(texts) - len(shown) + more} more']
