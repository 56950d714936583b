"""Judgements and the stored report of commissioning, as pure functions and plain data."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

from ..files import replace_file
from .device_checks import FAIL, OK, SKIP, WARN, Finding

OPEN = 'open'
FOLDER = 'commissioning'


@dataclass
class Item:
    """One item of the checklist. `result`: ok, WARN, FAIL, skip or open."""

    id: str
    title: str
    result: str = OPEN
    evidence: list[str] = field(default_factory=list)
    time: float = 0.0  # epoch s
    by: str = ''

    def take(self, findings: Iterable[Finding], by: str, now: float) -> None:
        """Result of the worst finding; each finding is evidence."""
        found = list(findings)
        order = (OK, SKIP, WARN, FAIL)
        judged = [f for f in found if f.level != SKIP] or found
        self.result = max((f.level for f in judged), key=order.index, default=SKIP)
        self.evidence = [f'{f.level}: {f.name}: {f.text}' for f in found]
        self.time, self.by = now, by


@dataclass
class Report:
    """The checklist of one site; kept in its state folder, so that it can be gone on with."""

    site: str
    site_hash: str
    items: list[Item] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """`refused` with a failed item, `open` while some are missing, else `commissioned`."""
        results = {i.result for i in self.items}
        return 'refused' if FAIL in results else OPEN if OPEN in results or not self.items else 'commissioned'

    def merge(self, titles: Mapping[str, str], again: bool) -> None:
        """The items of today's site in order; what was ok stays done unless `again`."""
        done = {} if again else {i.id: i for i in self.items if i.result in (OK, WARN)}
        self.items = [done.get(name) or Item(name, title) for name, title in titles.items()]

    def values(self) -> dict[str, Any]:
        """For JSON."""
        return {'site': self.site, 'site_hash': self.site_hash, 'verdict': self.verdict,
                'items': [asdict(i) for i in self.items]}

    def text(self) -> str:
        """For people."""
        lines = [f'Commissioning of {self.site}: {self.verdict}', f'site file {self.site_hash[:12]}', '']
        for i in self.items:
            when = time.strftime('%Y-%m-%d %H:%M', time.localtime(i.time)) if i.time else '-'
            lines.append(f'[{i.result:<4}] {i.title} ({i.id}){f", {when} by {i.by}" if i.by else ""}')
            lines += [f'         {e}' for e in i.evidence]
        return '\n'.join(lines) + '\n'

    def save(self, folder: Path) -> None:
        """`report.json` and `report.txt`. Raises OSError."""
        target = folder / FOLDER
        target.mkdir(parents=True, exist_ok=True)
        for name, text in (('report.json', json.dumps(self.values(), indent=1)), ('report.txt', self.text())):
            replace_file(target / name, text)


def load(folder: Path, site: str, site_hash: str) -> tuple[Report, str]:
    """The stored report, and why an earlier one does not count ('' = it does, or there is none)."""
    try:
        values = json.loads((folder / FOLDER / 'report.json').read_text(encoding='utf-8'))
        report = Report(str(values['site']), str(values['site_hash']), [Item(**i) for i in values['items']])
    except FileNotFoundError:
        return Report(site, site_hash), ''
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Report(site, site_hash), f'the earlier report cannot be read ({error}); starting anew'
    if report.site != site or report.site_hash != site_hash:
        return Report(site, site_hash), 'the site file has changed since the earlier report; starting anew'
    return report, ''


def signs(converter: str, change: float, moved: Mapping[str, tuple[str, float]], share: float = 0.5) -> list[Finding]:
    """Whether all see a change of the order (W, from discharging to charging) alike.

    `moved`: what ('converter', 'battery', 'meter') -> (name, change of its power in W, NaN = not measured).
    """
    out = []
    agree: dict[str, bool] = {}
    for what, (name, seen) in moved.items():
        if isnan(seen):
            out.append(Finding(SKIP, f'{what} {name}', 'not measured'))
        elif abs(seen) < share * abs(change):
            out.append(Finding(WARN, f'{what} {name}', f'moved by {seen:+.0f} W while the order changed by '
                               f'{change:+.0f} W: too little to tell its sign'))
        else:
            agree[what] = seen * change > 0.0
            out.append(Finding(OK if agree[what] else FAIL, f'{what} {name}',
                               f'moved by {seen:+.0f} W while the order changed by {change:+.0f} W'))
    wrong = [moved[w][0] for w, good in agree.items() if not good]
    if wrong and 'meter' in agree and not agree['meter'] and len(wrong) == 1:
        out.append(Finding(FAIL, 'battery and meter disagree', (
            f'charging {converter} lowered the import at {wrong[0]}: control would run away instead of following. '
            f'Everything else agrees with the order, so the meter is the other way round: turn its current '
            f'transformers, or change `invert` of {wrong[0]}')))
    elif wrong:
        out.append(Finding(FAIL, 'signs disagree', (
            f'{", ".join(wrong)} went down while {converter} was told to charge more. Charging must be positive at '
            'battery and converter and raise the import at the meter: correct the wiring, or change `invert` of '
            f'{", ".join(wrong)}')))
    return out


def configured_limits(status: Any, configured: Mapping[str, float]) -> list[Finding]:
    """Whether a battery reports limits, and which of the configured ones are wider and so never act."""
    out = []
    for name in ('max_charge_current', 'max_discharge_current', 'max_charge_power', 'max_discharge_power'):
        seen, own = float(getattr(status, name)), configured.get(name, float('nan'))
        if isnan(seen):
            continue
        text = f'{seen:g}' + ('' if isnan(own) or own >= 1e9 else f', configured {own:g}')
        out.append(Finding(OK if seen > 0.0 else WARN, name, text if seen > 0.0 else f'{text}: nothing is allowed now'))
    return out or [Finding(FAIL, 'limits', 'the battery reports no limit, and none is configured')]


def growing(before: Mapping[str, int], after: Mapping[str, int], seconds: float) -> Finding:
    """Whether recordings (name -> bytes) grew."""
    new = sum(after.values()) - sum(before.values())
    if not after:
        return Finding(FAIL, 'recording', 'no file in the folder of the recorder')
    return Finding(OK if new > 0 else FAIL, 'recording', f'{len(after)} files, {new} bytes more after {seconds:g} s')
