"""One figure: a name, a value with unit, and the goal it is held against."""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from bess_core.priority import session_nice, set_nice

RESULTS = Path(__file__).with_name('results.json')
README = Path(__file__).parent.parent / 'README.md'
BEGIN, END = '<!-- bench -->', '<!-- /bench -->'


@dataclass(frozen=True)
class Figure:
    """A measured value. `goal` is an upper bound in the same unit; None = for information."""

    name: str
    value: float
    unit: str
    goal: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        return None if self.goal is None else bool(self.value <= self.goal)


def percentile(values: list[float], share: float) -> float:
    """Value that `share` (0..1) of the values do not exceed. Raises ValueError for an empty list."""
    if not values:
        raise ValueError('no values')
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextmanager
def ahead_of_others(nice: int = -15) -> Iterator[None]:
    """This thread and those it starts go before other programs of the machine, where the system allows it.

    Figures in ms are about this program, not about what else runs meanwhile. The interpreter hands over as in the
    processes of a site (`bess_core.container`).
    """
    thread, interval = threading.get_native_id(), sys.getswitchinterval()
    before, session = os.getpriority(os.PRIO_PROCESS, thread), session_nice()
    try:
        set_nice(nice, thread)
    except OSError:
        print('bench: priority cannot be raised here, times include waiting for other programs', file=sys.stderr)
    sys.setswitchinterval(0.0005)
    try:
        yield
    finally:
        with suppress(OSError):
            set_nice(session, thread)
        os.setpriority(os.PRIO_PROCESS, thread, before)
        sys.setswitchinterval(interval)


@contextmanager
def settled() -> Iterator[None]:
    """What exists is exempt from garbage collection, as in the processes of a site once they are up."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def save(figures: Iterable[Figure], path: Path = RESULTS) -> None:
    """Write the list; figures of the file that were not measured this time are kept."""
    measured = {f.name: {**asdict(f), 'met': f.met} for f in figures}
    before = json.loads(path.read_text()) if path.exists() else []
    kept = [entry for entry in before if entry['name'] not in measured]
    path.write_text(json.dumps([*kept, *measured.values()], indent=1) + '\n')


def write_readme(results: Path = RESULTS, readme: Path = README) -> None:
    """Put all figures of the results file between the markers of the README."""
    rows = ['| Figure | Measured | Goal | |', '| --- | --- | --- | --- |']
    for entry in json.loads(results.read_text()):
        goal = '' if entry['goal'] is None else f'at most {entry["goal"]:g} {entry["unit"]}'.strip()
        met = {True: 'met', False: '**not met**', None: ''}[entry['met']]
        rows.append(f'| {entry["name"]} | {entry["value"]:.4g} {entry["unit"]} | {goal} | {met} |')
    text = readme.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    readme.write_text(text[:start] + '\n' + '\n'.join(rows) + '\n' + text[end:])


def table(figures: Iterable[Figure]) -> str:
    """Aligned text."""
    rows = [
        (f.name, f'{f.value:.4g}', f.unit, '' if f.goal is None else f'<= {f.goal:g}',
         {True: 'met', False: 'NOT MET', None: ''}[f.met])
        for f in figures
    ]
    header = ('figure', 'value', 'unit', 'goal', '')
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(5)]
    return '\n'.join(
        '  '.join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [header, *rows])
