"""Telegrams of a P1 port (DSMR 2 to 5, eMUCS): framing, checksum, and a meter reading of their values. Pure.

A telegram begins with a line `/...` and ends with a line `!` or `!CRC`; the CRC (CRC-16/ARC, from `/` to `!`) exists
from DSMR 4 on. Source: P1 companion standard 5.0.2 of Netbeheer Nederland, chapter 6. The values are parsed by the
library dsmr-parser, which is an optional extra.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from math import copysign, isnan, nan
from typing import Any

from bess_core.values import MeterReading, Quality
from bess_drivers.device import BadChecksum, BadFrame, BadValue, DeviceError

LONGEST = 8192  # bytes of a telegram: the longest text message has 2048 characters
EXTRA = 'the extra p1 is missing: pip install -r requirements/p1.txt'
_LINE = re.compile(rb'\d+-\d+:\d+(\.\d+)*(\([^()\x00-\x1f]*\))+|(\([^()\x00-\x1f]*\))+')  # the second: its continuation
_VERSION = re.compile(rb'^(1-3:0\.2\.8|0-0:96\.1\.4)\(', re.MULTILINE)  # there from DSMR 4 on
_UNITS = {'kWh': 1000.0, 'kW': 1000.0, 'Wh': 1.0, 'W': 1.0, 'V': 1.0, 'A': 1.0}
_PHASES = ('L1', 'L2', 'L3')
_NEEDED = frozenset((
    'P1_MESSAGE_TIMESTAMP', 'EQUIPMENT_IDENTIFIER', 'CURRENT_ELECTRICITY_USAGE', 'CURRENT_ELECTRICITY_DELIVERY',
    'ELECTRICITY_IMPORTED_TOTAL', 'ELECTRICITY_EXPORTED_TOTAL',
    *(f'ELECTRICITY_{way}_TARIFF_{n}' for way in ('USED', 'DELIVERED') for n in (1, 2)),
    *(f'INSTANTANEOUS_{what}_{p}' for what in ('VOLTAGE', 'CURRENT') for p in _PHASES),
    *(f'INSTANTANEOUS_ACTIVE_POWER_{p}_{sign}' for p in _PHASES for sign in ('POSITIVE', 'NEGATIVE'))))

Values = Mapping[str, Any]


def crc16(data: bytes) -> int:
    """CRC-16/ARC: polynomial 0x8005 reflected, start 0."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return crc


class Framer:
    """Cuts what arrives into telegrams. Damaged ones raise and are dropped; what follows is found again."""

    def __init__(self) -> None:
        self._data = b''

    def clear(self) -> None:
        """Forget what was received."""
        self._data = b''

    def feed(self, data: bytes) -> bytes | None:
        """The newest complete telegram in everything received, None while there is none. Raises as `check`.

        Raises `BadFrame` for a telegram that is cut off by the next one or never ends.
        """
        self._data += data
        found: bytes | None = None
        problem: DeviceError | None = None
        while True:
            start = self._data.find(b'/')
            self._data = self._data[start:] if start >= 0 else b''
            end = re.search(rb'\n!([0-9A-Fa-f]{4}|)\r?\n', self._data)
            again = re.search(rb'\n/', self._data)
            if again and (end is None or again.start() < end.start()):
                problem = BadFrame('a telegram was cut off by the next one')
                self._data = self._data[again.start() + 1:]
                continue
            if end is None:
                break
            telegram, self._data = self._data[:end.end()], self._data[end.end():]
            try:
                found, problem = check(telegram), None
            except DeviceError as error:
                problem = error
        if len(self._data) > LONGEST:
            self._data, problem = b'', BadFrame(f'{LONGEST} bytes without the end of a telegram')
        if problem is not None and found is None:
            raise problem
        return found


def check(telegram: bytes) -> bytes:
    """The telegram, when it is whole. Raises `BadChecksum`, `BadFrame`."""
    body, _, tail = telegram.rpartition(b'!')
    crc = tail.strip()
    if crc:
        if int(crc, 16) != (own := crc16(body + b'!')):
            raise BadChecksum(f'CRC {crc.decode()} instead of {own:04X}')
    elif _VERSION.search(body):
        raise BadChecksum('the CRC is missing')
    for line in body.splitlines()[1:]:
        if line and not _LINE.fullmatch(line):
            raise BadFrame(f'is no line of a telegram: {line[:60]!r}')
    return telegram


def reader() -> Callable[[bytes], Values]:
    """A function that takes the values out of a telegram. Raises ValueError where the library is missing."""
    try:
        from dsmr_parser import telegram_specifications as known
        from dsmr_parser.exceptions import ParseError
        from dsmr_parser.parsers import TelegramParser
    except ImportError as error:
        raise ValueError(EXTRA) from error
    # It logs each line that it cannot parse with a trace; we raise instead.
    logging.getLogger('dsmr_parser').setLevel(logging.CRITICAL)
    objects = {o['obis_reference']: o for s in (known.V2_2, known.V4, known.V5, known.SWEDEN) for o in s['objects']
               if o['value_name'] in _NEEDED}
    parser = TelegramParser({'checksum_support': False, 'objects': list(objects.values())},
                            apply_checksum_validation=False)

    def read(telegram: bytes) -> Values:
        text = b'\r\n'.join(telegram.splitlines()) + b'\r\n'  # its patterns want both
        try:
            parsed = parser.parse(text.decode('ascii'), throw_ex=True)
        except (ParseError, UnicodeDecodeError, ArithmeticError, ValueError) as error:
            raise BadFrame(f'cannot be parsed: {error}') from error
        return {str(name): value for name, value in parsed}

    return read


def _number(values: Values, name: str) -> float:
    """A value in SI units; NaN where the telegram has none. Raises `BadValue` for a unit that is not known."""
    item = values.get(name)
    if item is None or item.value is None:
        return nan
    if item.unit not in _UNITS:
        raise BadValue(f'{name} is in {item.unit!r}, known: {", ".join(_UNITS)}')
    return float(item.value) * _UNITS[item.unit]


def _difference(values: Values, plus: str, minus: str) -> float:
    """Import minus export; a meter that does not feed in has no second value."""
    imported, exported = _number(values, plus), _number(values, minus)
    return imported - (0.0 if isnan(exported) else exported) + 0.0


def _energy(values: Values, way: str, total: str) -> float:
    """Energy of all tariffs, or the total where the meter has no tariffs, Wh; NaN without any."""
    tariffs = [v for n in (1, 2) if not isnan(v := _number(values, f'ELECTRICITY_{way}_TARIFF_{n}'))]
    return sum(tariffs) if tariffs else _number(values, total)


def reading_from(values: Values, now: float) -> MeterReading:
    """A reading; + = into the house (import). Currents get the sign of their phase's power. Raises `BadValue`."""
    power = _difference(values, 'CURRENT_ELECTRICITY_USAGE', 'CURRENT_ELECTRICITY_DELIVERY')
    if isnan(power):
        raise BadValue('the telegram has no power (1-0:1.7.0)')
    volts, amps, watts = [], [], []
    for phase in _PHASES:
        watt = _difference(values, f'INSTANTANEOUS_ACTIVE_POWER_{phase}_POSITIVE',
                           f'INSTANTANEOUS_ACTIVE_POWER_{phase}_NEGATIVE')
        ampere = abs(_number(values, f'INSTANTANEOUS_CURRENT_{phase}'))
        watts.append(watt)
        amps.append(ampere if isnan(watt) else copysign(ampere, watt))
        volts.append(_number(values, f'INSTANTANEOUS_VOLTAGE_{phase}'))
    return MeterReading(
        time=now, quality=Quality.OK, voltage=(volts[0], volts[1], volts[2]), current=(amps[0], amps[1], amps[2]),
        phase_power=(watts[0], watts[1], watts[2]), active_power=power,
        energy_import=_energy(values, 'USED', 'ELECTRICITY_IMPORTED_TOTAL'),
        energy_export=_energy(values, 'DELIVERED', 'ELECTRICITY_EXPORTED_TOTAL'))
