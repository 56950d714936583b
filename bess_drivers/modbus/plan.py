"""Which registers to read in one request: the fewest requests that hold all points. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True, slots=True)
class Span:
    """Registers `start` to `start + count - 1`."""

    start: int
    count: int

    @property
    def end(self) -> int:
        """The register after the last."""
        return self.start + self.count


def plan(wanted: Iterable[Span], most: int, max_gap: int = 0, holes: Sequence[tuple[int, int]] = ()) -> list[Span]:
    """The fewest reads of at most `most` registers that each hold whole wanted spans, in ascending order.

    A read passes over at most `max_gap` registers in a row that nobody wants, and over none of `holes`
    ([first, last]). Fewest: within what may be read in one go, the first span that is not yet read has
    to begin a read (none can begin later, beginning earlier reaches less far), and taking all that fit
    behind it never costs a read. Raises ValueError for a span that is longer than `most`.
    """
    reads: list[Span] = []
    for segment in _segments(sorted(set(wanted)), max_gap, holes):
        left = segment
        while left:
            start = left[0].start
            taken = [s for s in left if s.end <= start + most]
            if left[0] not in taken:
                raise ValueError(f'{left[0].count} registers at {start} do not fit one read of {most}')
            reads.append(Span(start, max(s.end for s in taken) - start))
            left = [s for s in left if s.end > start + most]
    return reads


def _segments(spans: list[Span], max_gap: int, holes: Sequence[tuple[int, int]]) -> list[list[Span]]:
    """Spans that reads may join, in groups."""
    groups: list[list[Span]] = []
    end = 0
    for span in spans:
        gap = span.start - end
        crosses = any(first < span.start and last >= end for first, last in holes)
        if not groups or gap > max_gap or (gap > 0 and crosses):
            groups.append([])
            end = span.end
        groups[-1].append(span)
        end = max(end, span.end)
    return groups
