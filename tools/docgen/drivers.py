"""`docs/drivers.md`: each device, its transport and role, and what of it is verified against what.

Sources are `docs/drivers.yaml` (drivers that are programs) and the profiles in `config/devices`. A claim
without a test that exists is refused: for a profile a test file must name it or its base.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from bess_core import plugins
from bess_core.site import resolve_type

from . import HEADER, code, table
from .parameters import OURS

AGAINST = ('published frame', 'vendor document', 'independent implementation', 'own simulator only', 'nothing')
#: Types that only carry profiles: the profiles are listed instead.
CARRIERS = re.compile(r'(modbus|can)_(battery|converter|meter|io|climate)\Z')
KEYS = {'what', 'against', 'by', 'test'}
TEXT = """\
What can be used, and how far each is proved. The last column says what was checked and against what; nothing is
claimed beyond it. In order of weight:

- **published frame**: bytes or registers that somebody else recorded or printed are decoded to the values given there.
- **vendor document**: addresses, scales and signs are those of the maker's own document.
- **independent implementation**: they are those of another open implementation, or another program reads and writes
  the same simulated device (pysunspec2, mbpoll).
- **own simulator only**: works against our simulated device, which was written from the same public facts.
- **nothing**: assumed; a setting, or to be checked on the device with `bess device check`.

None of this was tried on the real device unless it says so. What a device does not measure stays unknown (NaN).
How each behaves when bits are set, frames damaged, cables pulled and clocks moved: [conformance.md](conformance.md).
"""


def render(root: Path) -> tuple[str, list[str]]:
    """The page, and claims that nothing proves."""
    listed: dict[str, Any] = yaml.safe_load((root / 'docs' / 'drivers.yaml').read_text(encoding='utf-8'))
    tests = {p.relative_to(root).as_posix(): p.read_text(encoding='utf-8')
             for p in sorted((root / 'test').rglob('test_*.py'))}
    problems: list[str] = []
    rows = [*_programs(listed, tests, problems), *_profiles(root, tests, problems)]
    lines = [HEADER, '# Drivers\n', TEXT,
             table(['Type', 'Profile', 'Device', 'Transport', 'Role', 'Verified against'], rows),
             '## Notes\n', *_notes()]
    return '\n'.join(lines), problems


def _programs(listed: dict[str, Any], tests: dict[str, str], problems: list[str]) -> list[list[str]]:
    rows = []
    ours = {n: e for n, e in plugins.available(plugins.DRIVERS).items() if e.value.startswith(OURS)}
    # Nodes that talk to devices without being a driver of one: only those that are listed.
    ours |= {n: e for n, e in plugins.available(plugins.NODES).items() if n in listed and e.value.startswith(OURS)}
    problems += [f'docs/drivers.yaml: {name} is no driver' for name in sorted(set(listed) - set(ours))]
    for name in sorted(ours):
        if CARRIERS.match(name):
            continue
        entry = listed.get(name, {})
        lacks = [k for k in ('device', 'transport', 'verified') if not entry.get(k)]
        if lacks:
            problems.append(f'docs/drivers.yaml: {name}: {", ".join(lacks)} missing; '
                            'every driver says what is verified')
            continue
        for claim in entry.get('verified', []):
            problems += [f'docs/drivers.yaml: {name}: {p}' for p in _problems(claim, tests)]
        rows.append([code(name), '', str(entry['device']), str(entry['transport']), str(resolve_type(name).role),
                     _claims(entry.get('verified', []))])
    return rows


def _problems(claim: dict[str, str], tests: dict[str, str]) -> list[str]:
    out = [f'unknown key {k!r}' for k in set(claim) - KEYS]
    if claim.get('against') not in AGAINST:
        out.append(f'{claim.get("against")!r} is none of {", ".join(AGAINST)}')
    if claim.get('against') != 'nothing' and claim.get('test') not in tests:
        out.append(f'{claim.get("what")}: no test {claim.get("test")!r}')
    return out


def _claims(claims: list[Any]) -> str:
    if not claims:
        return 'not stated'
    read = [c if isinstance(c, dict) else vars(c) for c in claims]
    return '; '.join(f'{c["what"]}: {c["against"]}' + (f' ({c["by"]})' if c.get('by') else '') for c in read)


def _profiles(root: Path, tests: dict[str, str], problems: list[str]) -> list[list[str]]:
    from bess_drivers.profiles import load_profile

    rows = []
    for path in sorted((root / 'config' / 'devices').glob('*.yaml')):
        profile = load_profile(str(path))
        proved = any(re.search(rf'\b{profile.name}\b', text) for text in tests.values())
        base = re.search(r'^extends: *(\w+)', path.read_text(encoding='utf-8'), re.MULTILINE)
        proved |= base is not None and any(re.search(rf'\b{base[1]}\b', text) for text in tests.values())
        if not proved and any(v.against != 'nothing' for v in profile.verified):
            problems.append(f'{path.name}: no test names this profile, so that nothing is verified')
        transport = {'modbus': 'Modbus', 'can': 'CAN'}[profile.head.transport]
        kind = f'{profile.head.transport}_{profile.role.value}'
        rows.append([code(kind), code(profile.name), profile.head.title, transport,
                     str(resolve_type(kind).role), _claims(list(profile.verified))])
    return rows


def _notes() -> list[str]:
    from bess_drivers.profiles import installed, load_profile
    from bess_drivers.profiles.assemble import missing

    lines = []
    for name in installed():
        profile = load_profile(name)
        unknown = missing(profile)
        said = [*profile.notes, *([f'Not known from this device: {", ".join(code(u) for u in unknown)}.']
                                  if unknown else [])]
        if said:
            lines.append(f'### `{name}`\n')
            lines.append('\n'.join(f'- {note}' for note in said) + '\n')
            lines.append(f'Source: {profile.head.source}.\n')
    return lines


def fault_tables() -> list[str]:
    """Faults that profiles name, for the page of faults."""
    from bess_drivers.profiles import installed, load_profile

    lines: list[str] = []
    seen: set[str] = set()
    for name in installed():
        profile = load_profile(name)
        rows = [[code(f.id), f.severity.name, f.name] for f in profile.faults if f.id not in seen]
        seen |= {f.id for f in profile.faults}
        if rows:
            lines += [f'### {profile.head.title}\n', table(['Id', 'Severity', 'Name of the device'], rows)]
    if lines:
        lines[:0] = ['## Faults of devices that a profile describes\n',
                     'Raised by the driver while the device shows them; look into the manual of the device.\n']
    return lines
