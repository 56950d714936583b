"""Data objects of batteries in IEC 61850-7-420 and their meaning. Pure.

Edition 2: DBAT (battery), SBAT (supervision), DSTO (storage). Edition 1: ZBAT (battery), ZBTC (charger). Names as
used by the point lists of IEEE 1815.2 and open documents, see `shared/facts/mesa_sunspec_dnp3_iec61850.md`,
section 15; the meaning of those of edition 1 is not verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, nan

from bess_core.values import Severity
from bess_drivers.device import BadValue
from bess_drivers.serial.bms_reading import Condition, Snapshot, checked

BATTERY_CLASSES = ('DBAT', 'ZBAT')
#: Nodes that may stand beside a battery.
BESIDE = ('SBAT', 'DSTO', 'ZBTC')
#: Ways to hold a number: attribute, functional constraint, quality, exponent of the unit.
NUMBER_FORMS = (('mag.f', 'MX', 'q', 'units.multiplier'), ('setMag.f', 'SP', '', 'units.multiplier'))
STATUS_FORM = ('stVal', 'ST', 'q')
INVALID = (1, 2)  # validity (bits 0 and 1 of the quality): reserved, invalid; 3 is questionable, 0 good

#: role -> (class, data object), the first that the server has counts
NUMBERS: dict[str, tuple[tuple[str, str], ...]] = {
    'voltage': (('DBAT', 'ExtVol'), ('DBAT', 'IntnVol'), ('ZBAT', 'Vol'), ('ZBAT', 'InBatV')),
    'current': (('DBAT', 'Amp'), ('ZBAT', 'Amp')),
    'power': (('DBAT', 'Watt'),),
    'energy': (('DBAT', 'SocWh'),),
    'energy_full': (('DBAT', 'EffWh'), ('DBAT', 'WhMaxRtg'), ('DSTO', 'EffWh'), ('DSTO', 'WhRtg')),
    'charge_full': (('ZBAT', 'AhrRtg'),),
    'soc_percent': (('DSTO', 'SocPct'),),
    'charge_limit': (('DBAT', 'ChaAmpLim'), ('ZBTC', 'ReChaRte')),
    'discharge_limit': (('DBAT', 'DschAmpLim'), ('ZBAT', 'MaxBatA')),
    'inside': (('DBAT', 'IntnTmp'), ('ZBAT', 'InBatTmp')),
    'outside': (('DBAT', 'ExtTmp'),),
    'cell_min': (('SBAT', 'CelVolLo'),), 'cell_max': (('SBAT', 'CelVolHi'),),
    'cell_cold': (('SBAT', 'CelTmpMin'),), 'cell_hot': (('SBAT', 'CelTmpMax'),),
}
NEEDED = ('voltage', 'current')
LIMITS = ('charge_limit', 'discharge_limit')
TEMPERATURES = ('inside', 'outside', 'cell_cold', 'cell_hot')
SWITCH = ('DBAT', 'DCSwCls')
_W = Severity.WARNING
_HIGH = Condition('overvoltage', 'voltage too high', blocks_charge=True)
_LOW = Condition('undervoltage', 'voltage too low', blocks_discharge=True)
_HOT = Condition('overtemperature', 'battery too hot', blocks_charge=True, blocks_discharge=True)
_COLD = Condition('undertemperature', 'battery too cold', blocks_charge=True)
#: Status of DBAT -> condition
ALARMS: dict[str, Condition] = {
    'ExtVolHiAlm': _HIGH, 'IntnVolHiAlm': _HIGH, 'ExtVolLoAlm': _LOW, 'IntnVolLoAlm': _LOW,
    'ExtTmpHiAlm': _HOT, 'IntnTmpHiAlm': _HOT, 'ExtTmpLoAlm': _COLD, 'IntnTmpLoAlm': _COLD,
    'UnbTmpAlm': Condition('unbalanced_temperature', 'temperatures differ too much'),
    'UnbVolWrn': Condition('unbalanced_voltage', 'voltages differ', _W),
    'UnbAmpWrn': Condition('unbalanced_current', 'currents differ', _W),
    'ChaAmpHiAlm': Condition('charge_overcurrent', 'charge current too high', blocks_charge=True),
    'DschAmpHiAlm': Condition('discharge_overcurrent', 'discharge current too high', blocks_discharge=True),
    'SocHiAlm': Condition('soc_high', 'state of charge too high', blocks_charge=True),
    'SocLoAlm': Condition('soc_low', 'state of charge too low', blocks_discharge=True),
}
LIMIT_LOST = Condition('limit_invalid', 'a limit of the battery is marked as invalid', blocks_charge=True,
                       blocks_discharge=True)


def choose(devices: Mapping[str, list[str]], device: str = '', node: str = '') -> tuple[str, str, dict[str, str]]:
    """Logical device, battery node, and class -> node of those beside it. Raises `BadValue` when it is not clear."""
    found = [(d, n) for d, nodes in devices.items() for n in nodes if _class(n) in BATTERY_CLASSES
             and device in ('', d) and node in ('', n)]
    if len(found) != 1:
        have = ', '.join(f'{d}/{n}' for d, nodes in devices.items() for n in nodes if _class(n) in BATTERY_CLASSES)
        raise BadValue(f'{"no" if not found else "more than one"} battery node for device {device!r}, node {node!r}; '
                       f'the server has {have or "none of " + ", ".join(BATTERY_CLASSES)}')
    device, node = found[0]
    nodes = {_class(node): node}
    for kind in BESIDE:
        same = [n for n in devices[device] if _class(n) == kind]
        # That of the same number; the only one belongs to the battery in any case.
        match = [n for n in same if _number(n) == _number(node)] or (same if len(same) == 1 else [])
        if match:
            nodes[kind] = match[0]
    return device, node, nodes


def _class(node: str) -> str:
    name = node.rstrip('0123456789')
    return name[-4:]


def _number(node: str) -> str:
    return node[len(node.rstrip('0123456789')):]


def usable(quality: object) -> bool:
    """Whether a value of this quality counts; None (there is none) does."""
    return not (isinstance(quality, int) and quality & 3 in INVALID)


def snapshot(numbers: Mapping[str, float], invalid: set[str], alarms: tuple[Condition, ...], switch: bool | None,
             sign: float, nominal_voltage: float) -> tuple[Snapshot, float]:
    """One poll, and the measured power (W, + = charging; NaN = not measured). Raises `BadValue`.

    numbers: SI values by role; `invalid` the roles whose quality says so. sign: -1 turns current and power.
    """
    for role in NEEDED:
        if role not in numbers or role in invalid or not isfinite(numbers[role]):
            raise BadValue(f'{role} is {"invalid" if role in invalid else "missing"}')
    value = {r: (nan if r in invalid or not isfinite(v) else v) for r, v in numbers.items()}
    volts = checked('voltage (V)', value['voltage'], 0.1, 5000.0)
    per_ah = nominal_voltage or volts
    lost = [r for r in LIMITS if r in numbers and value[r] != value[r]]
    percent = value.get('soc_percent', nan)
    charge_full = value.get('energy_full', nan) / per_ah
    out = Snapshot(
        voltage=volts, current=sign * value['current'] + 0.0,
        temperatures=tuple(value[r] for r in TEMPERATURES if value.get(r, nan) == value.get(r, nan)),
        charge=value.get('energy', nan) / per_ah,
        charge_full=charge_full if charge_full == charge_full else value.get('charge_full', nan),
        soc=nan if percent != percent else checked('state of charge (%)', percent, 0.0, 100.0) / 100.0,
        charge_on=switch, discharge_on=switch,
        charge_limit=abs(value.get('charge_limit', nan)), discharge_limit=abs(value.get('discharge_limit', nan)),
        conditions=(*{c.id: c for c in alarms}.values(), *((LIMIT_LOST,) if lost else ())),
        cell_min=value.get('cell_min', nan), cell_max=value.get('cell_max', nan))
    return out, sign * value.get('power', nan)
