"""`docs/faults.md` from the catalogue `docs/faults.yaml`, which must list exactly the ids of the code."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from . import HEADER, code, drivers, table

#: Function or class name -> position of the fault id among its arguments.
CALLS = {'raise_fault': 0, 'raise_': 0, 'set_fault': 1, 'Alarm': 0}
SEVERITIES = ('WARNING', 'ERROR', 'CRITICAL')
KEYS = {'id', 'severity', 'raised_by', 'meaning', 'action'}


@dataclass(frozen=True)
class Found:
    """A fault id in the source; `*` stands for what is filled in at run time."""

    id: str
    severity: str  # '' = decided at run time
    where: str


class Unreadable(ValueError):
    """An id that cannot be read from the source: the catalogue could not be checked."""


def ids_in_code(root: Path) -> list[Found]:
    """Every fault id that the rooms raise. Raises `Unreadable`."""
    return [f for path in sorted(root.glob('bess_*/**/*.py')) for f in _in_file(path, str(path.relative_to(root)))]


def _in_file(path: Path, shown: str) -> Iterator[Found]:
    tree = ast.parse(path.read_text(encoding='utf-8'))
    constants = {t.id: n.value.value for n in tree.body
                 if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)
                 for t in n.targets if isinstance(t, ast.Name)}
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, 'id', '')
        if name not in CALLS or len(call.args) <= CALLS[name]:
            continue
        inside = [f for f in functions if f.lineno <= call.lineno <= (f.end_lineno or 0)]
        given = call.args[CALLS[name]]
        severity = next((a.attr for a in call.args if isinstance(a, ast.Attribute)
                         and getattr(a.value, 'id', '') == 'Severity'), '')
        for id in _texts(given, inside, constants, f'{shown}:{call.lineno}'):
            yield Found(id, severity, f'{shown}:{call.lineno}')


def _texts(node: ast.expr, inside: list[ast.FunctionDef], constants: dict[str, Any], where: str) -> Iterable[str]:
    """Possible values of an expression that names a fault."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return [''.join(str(p.value) if isinstance(p, ast.Constant) else '*' for p in node.values)]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, inside, constants, where), *_texts(node.orelse, inside, constants, where)]
    if isinstance(node, ast.Name):
        if any(node.id in {a.arg for a in f.args.args} for f in inside):
            return []  # handed on: found where it is given
        if node.id in constants:
            return [str(constants[node.id])]
        assigned = [n.value for f in inside for n in ast.walk(f) if isinstance(n, ast.Assign)
                    and any(getattr(t, 'id', '') == node.id for t in n.targets)]
        if assigned:
            return [text for value in assigned for text in _texts(value, inside, constants, where)]
    if isinstance(node, ast.Attribute) and node.attr == 'id':
        return []  # of an Alarm: found where that is made
    raise Unreadable(f'{where}: cannot read the fault id {ast.unparse(node)!r}')


def expansions(root: Path) -> dict[str, set[str]]:
    """Ids behind the patterns of the code whose parts are tables of the code."""
    from bess_control.protection.monitors import DEFAULTS
    from bess_drivers import device
    from bess_drivers.can.can_bms_codec import ALARM_PAIRS, PROTECTION_BITS
    from bess_drivers.cells.controller import CONDITIONS as CELLS
    from bess_drivers.iec61850 import objects
    from bess_drivers.serial import daly, jbd_up16s, jk, pylontech
    from bess_drivers.serial.jbd_codec import PROTECTIONS
    from bess_drivers.smbus import bq40z50_codec as bq
    from bess_drivers.sunspec.definitions import model_definition
    from bess_drivers.sunspec.vendor_functions import PRECHARGE_ERRORS, VENDOR_STATES

    conditions = {
        'daly': [*daly.ALARM_BITS.values(), *daly.parse_alarms(bytes(7) + b'\1', True)],
        'jk': [*jk.JK_ALARMS.values(), *jk.PB_ALARMS.values()],
        'jbd_up16s': [*jbd_up16s.FAULTS.values(), *jbd_up16s.ALARMS.values()],
        'pylontech': [*pylontech.CONDITIONS], 'seplos': [*pylontech.SEPLOS_BITS.values()],
        'iec61850': [*objects.ALARMS.values(), objects.LIMIT_LOST],
        'bq40z50': [*bq.SAFETY_BITS.values(), *bq.PF_BITS.values(), bq.UNSEALED]}
    kinds = {c.kind for c in vars(device).values()
             if isinstance(c, builtins.type) and issubclass(c, device.DeviceError) and c is not device.DeviceError}
    bits = set()
    inverters = ((m, 'Evt1') for m in (101, 102, 103, 111, 112, 113))
    for model, point in ((802, 'Evt1'), (803, 'StrEvt1'), (804, 'Evt1'), (807, 'Evt1'), (807, 'Evt2'), (807, 'ModEvt1'),
                         (807, 'ModEvt2'), (701, 'Alrm'), (714, 'DCAlrm'), *inverters):
        definition = model_definition(model)
        if definition is not None:
            named = next(p for p in (*definition.points, *definition.repeat) if p.name == point)
            bits |= {s.lower().replace(' ', '_') for s in named.symbols.values()}
    hooks = {str(call.args[0].value)
             for call in ast.walk(ast.parse((root / 'bess_core/node.py').read_text(encoding='utf-8')))
             if isinstance(call, ast.Call) and getattr(call.func, 'attr', '') == '_hook' and call.args
             and isinstance(call.args[0], ast.Constant)} | {'undo_*'}
    return {
        'comm.*': {f'comm.{k}' for k in kinds - {'read_only'}},  # a poll never writes
        'can_bms.*': {f'can_bms.{c.id}' for c in (*ALARM_PAIRS.values(), *PROTECTION_BITS.values())},
        'sunspec.*_*_connection': {'sunspec.string_*_connection', 'sunspec.string_*_module_*_connection'},
        'monitor.*': {f'monitor.{name}' for name in DEFAULTS},
        '*.*': {f'{prefix}.{c.id}' for prefix, table in conditions.items() for c in table} | {
            f'cells.{id}' for id in CELLS} | {'bq40z50.safety_bit_*', 'bq40z50.pf_bit_*'},  # BMS
        'jbd.*': {f'jbd.{p.name}' for p in PROTECTIONS},
        'sunspec.*': {f'sunspec.{b}' for b in bits if not b.startswith('reserved')} | {
            *(f'sunspec.evtvnd{n}' for n in (1, 2, 3, 4)), 'sunspec.bit_*', 'sunspec.evt2_bit_*'},
        'sunspec.meter_*': {f'sunspec.meter_{n}' for n in (
            'power_failure', 'under_voltage', 'low_pf', 'over_current', 'over_voltage', 'missing_sensor', '*')},
        'kaco.*': {f'kaco.{name}' for name, _ in VENDOR_STATES.values()},
        'kaco.precharge_*': {f'kaco.precharge_{name}' for name in (*PRECHARGE_ERRORS.values(), 'code_*')},
        'node.*': {f'node.{h}' for h in hooks},
    }


def render(root: Path) -> tuple[str, list[str]]:
    """The page, and where catalogue and code differ."""
    from bess_control.protection.fault_policy import anchor

    groups = yaml.safe_load((root / 'docs' / 'faults.yaml').read_text(encoding='utf-8'))
    problems: list[str] = []
    try:
        found = ids_in_code(root)
    except Unreadable as error:
        return '', [str(error)]
    for group in groups:  # what a group says holds for all its faults that do not say otherwise
        common = {k: group[k] for k in ('raised_by', 'action') if k in group}
        group['faults'] = [common | e for e in group['faults']]
    entries = [e for group in groups for e in group['faults']]
    problems += [f'docs/faults.yaml: {e.get("id", e)}: needs exactly the keys {", ".join(sorted(KEYS))}'
                 for e in entries if set(e) != KEYS]
    if problems:
        return '', problems
    known = [str(e['id']) for e in entries]
    problems += [f'docs/faults.yaml: {i} is listed twice' for i in {i for i in known if known.count(i) > 1}]
    problems += compare({str(e['id']): str(e['severity']) for e in entries}, found, expansions(root))
    lines = [
        HEADER, '# Faults\n',
        'A fault has a stable id, a severity and a text with the measured values. It is *active* while its cause is '
        'there and goes by itself with it. A CRITICAL fault *latches*: it stays, also over a restart, until somebody '
        'clears it (`bess faults clear NODE [ID]`, the dashboard, or the service `~/clear_fault`), which is refused '
        'while the cause is present; meanwhile the site is in ERROR. `*` stands for a name or number.\n',
        '- WARNING: works on, somebody should look.\n- ERROR: this component cannot do its job at present.\n'
        '- CRITICAL: danger; latched.\n',
    ]
    for group in groups:
        lines.append(f'## {group["title"]}\n')
        if group.get('text'):
            lines.append(' '.join(group['text'].split()) + '\n')
        lines.append(table(['Id', 'Severity', 'Raised by', 'Meaning', 'What to do'],
                           [[f'<a id="{anchor(e["id"])}"></a>{code(e["id"])}', e['severity'], e['raised_by'], e['meaning'], e['action']]  # noqa: E501
                            for e in group['faults']]))
    lines += drivers.fault_tables()
    return '\n'.join(lines), problems


def compare(catalogue: dict[str, str], found: list[Found], expanded: dict[str, set[str]]) -> list[str]:
    """What one side has and the other lacks. `catalogue`: id -> severity."""
    problems: list[str] = []
    wanted: set[str] = set()
    for fault in found:
        ids = expanded.get(fault.id, {fault.id})
        wanted |= ids
        problems += [f'{fault.where}: fault {id!r} is not in docs/faults.yaml' for id in sorted(ids - set(catalogue))]
        listed = catalogue.get(fault.id, '')
        if fault.severity and listed and fault.severity not in listed.split(' or '):
            problems.append(f'{fault.where}: {fault.id} is {fault.severity}, docs/faults.yaml says {listed}')
    for id, severity in catalogue.items():
        if not set(severity.split(' or ')) <= set(SEVERITIES):
            problems.append(f'docs/faults.yaml: {id}: severity {severity!r} is none of {", ".join(SEVERITIES)}')
        if id not in wanted and not any(fnmatchcase(id, f.id) and f.id not in expanded for f in found):
            problems.append(f'docs/faults.yaml: nothing in the code raises {id!r}')
    return list(dict.fromkeys(problems))
