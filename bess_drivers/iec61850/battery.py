"""A battery behind an IEC 61850 server (MMS), through the bridge process."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from math import isnan
from time import monotonic, sleep
from typing import Any, ClassVar
from urllib.parse import urlsplit

from bess_core.params import param
from bess_core.values import BatteryReading, Identity
from bess_drivers.device import Disconnected, ReadOnlyError, Refused, Role
from bess_drivers.iec61850 import objects
from bess_drivers.iec61850.bridge import COMMAND, Bridge, find_bridge
from bess_drivers.serial.bms_reading import PackParams, reading_from

CONFIRM_S, LOOK_S = 5.0, 0.2  # how long a switch may take, and how often it is looked at


@dataclass(frozen=True)
class Iec61850Params(PackParams):
    """Settings of one battery of an IEC 61850 server."""

    address: str = param('', doc='iec61850://host:port of the server; 102 when no port is given')
    timeout_s: float = param(2.0, 's', 'time for one answer of the server', low=0.1, high=60.0)
    device: str = param('', doc='logical device, e.g. BESS1BAT; empty = the one with a battery node')
    node: str = param('', doc='battery node, e.g. DBAT1 or ZBAT1; empty = the only one')
    invert: bool = param(False, doc='the server counts current and power as positive when discharging')
    switch: str = param('', doc='object that switches the battery, e.g. CSWI1.Pos; empty = it cannot be switched')
    bridge: str = param('', doc='command of the bridge program; empty = the installed one')


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `iec61850://host:port`. Raises ValueError."""
    url = urlsplit(address)
    if url.scheme != 'iec61850' or not url.hostname or url.path not in ('', '/') or url.query:
        raise ValueError(f'address {address!r} is not iec61850://host:port')
    return url.hostname, url.port or 102


class Iec61850Battery:
    """One battery node of a server (`BatteryDevice`)."""

    Params: ClassVar[type] = Iec61850Params
    role: ClassVar[Role] = Role.BATTERY

    def __init__(self, params: Iec61850Params, read_only: bool = False) -> None:
        self.params, self.read_only = params, read_only
        self._host, self._port = parse_address(params.address)
        self._bridge: Bridge | None = None
        self._about: dict[str, Any] = {}
        self._device = ''
        #: role -> (reference, constraint, reference of the quality or '', factor to SI)
        self._numbers: dict[str, tuple[str, str, str, float]] = {}
        self._states: dict[str, str] = {}  # data object of DBAT -> reference without attribute

    def open(self) -> None:
        """Start the bridge and connect. Raises `DeviceError`."""
        command = shlex.split(self.params.bridge) or [find_bridge()]
        if not command[0]:
            raise Disconnected(f'{COMMAND} is not installed: '
                               'pip install -r requirements/iec61850.txt ./iec61850_bridge')
        if self._bridge is None:
            # The bridge refuses too: what it does not send nobody sends.
            self._bridge = Bridge([*command, *(['--read-only'] if self.read_only else [])])
        self._bridge.start()
        self._about = self._ask('connect', host=self._host, port=self._port, timeout=self.params.timeout_s)

    def close(self) -> None:
        """End the bridge; never raises."""
        bridge, self._bridge = self._bridge, None
        if bridge is not None:
            bridge.close()

    def identify(self) -> Identity:
        """Find the battery and what the server has of it. Raises `DeviceError`, `BadValue` when it is not clear."""
        devices = self._ask('directory').get('devices', {})
        self._device, node, nodes = objects.choose(devices, self.params.device, self.params.node)
        self._find_numbers(nodes)
        states = (*objects.ALARMS, objects.SWITCH[1]) if 'DBAT' in nodes else ()
        self._states = {do: f'{self._device}/{nodes["DBAT"]}.{do}' for do in states}
        values = self._read([(f'{at}.stVal', 'ST') for at in self._states.values()])
        self._states = {do: at for (do, at), v in zip(self._states.items(), values, strict=True) if v is not None}
        about = self._about
        return Identity(str(about.get('vendor', '')), f'{about.get("model", "")} {self._device}/{node}'.strip(), '',
                        str(about.get('revision', '')))

    def _find_numbers(self, nodes: dict[str, str]) -> None:
        tries = [(role, f'{self._device}/{nodes[kind]}.{do}', form) for role, choices in objects.NUMBERS.items()
                 for kind, do in choices if kind in nodes for form in objects.NUMBER_FORMS]
        values = self._read([(f'{at}.{form[0]}', form[1]) for _, at, form in tries])
        found: dict[str, tuple[str, tuple[str, str, str, str]]] = {}
        for (role, at, form), value in zip(tries, values, strict=True):
            if value is not None:
                found.setdefault(role, (at, form))
        exponents = self._read([(f'{at}.{form[3]}', 'CF') for at, form in found.values()])
        self._numbers = {
            role: (f'{at}.{form[0]}', form[1], f'{at}.{form[2]}' if form[2] else '',
                   10.0 ** exponent if isinstance(exponent, int) and -24 <= exponent <= 24 else 1.0)
            for (role, (at, form)), exponent in zip(found.items(), exponents, strict=True)}

    def read(self, now: float) -> BatteryReading:
        """One poll; `now` (s, site clock) becomes its time. Raises `DeviceError`."""
        wanted = [(at, fc) for at, fc, _, _ in self._numbers.values()]
        qualities = {role: (q, fc) for role, (_, fc, q, _) in self._numbers.items() if q}
        states = [(f'{at}.stVal', 'ST') for at in self._states.values()]
        values = self._read([*wanted, *qualities.values(), *states])
        count = len(wanted)
        numbers = {role: float(v) * factor for (role, (_, _, _, factor)), v
                   in zip(self._numbers.items(), values[:count], strict=True) if isinstance(v, int | float)}
        invalid = {role for role, q in zip(qualities, values[count:count + len(qualities)], strict=True)
                   if not objects.usable(q)}
        invalid |= set(self._numbers) - set(numbers)  # it was there before
        shown = dict(zip(self._states, values[count + len(qualities):], strict=True))
        alarms = tuple(objects.ALARMS[do] for do, v in shown.items() if do in objects.ALARMS and v is True)
        switch = shown.get(objects.SWITCH[1])
        snapshot, power = objects.snapshot(
            numbers, invalid, alarms, switch if isinstance(switch, bool) else None,
            -1.0 if self.params.invert else 1.0, self.params.nominal_voltage)
        reading = reading_from(snapshot, self.params, 'iec61850', now)
        if not isnan(power):
            reading.power = power
        return reading

    def set_contactor(self, charge: bool, discharge: bool) -> None:
        """Operate the switch and wait until it shows its new position. Raises `DeviceError`."""
        if self.read_only:
            raise ReadOnlyError(f'{self.params.address} is read-only; not sent: switch {charge:d}, {discharge:d}')
        if not self.params.switch:
            raise Refused('no object to switch with is configured (parameter switch)')
        if charge != discharge:
            raise Refused('one switch carries both directions; they cannot be switched apart')
        target = f'{self._device}/{self.params.switch}'
        self._ask('operate', object=target, value=charge)
        deadline = monotonic() + CONFIRM_S
        while True:
            shown = self._read([(f'{target}.stVal', 'ST')])[0]
            # The two bits of a double point, first bit first: 01 off, 10 on.
            if shown is charge or (not isinstance(shown, bool) and shown == (1 if charge else 2)):
                return
            if monotonic() >= deadline:
                raise Refused(f'{target} does not follow within {CONFIRM_S:g} s: it shows {shown!r}')
            sleep(LOOK_S)

    def _read(self, items: list[tuple[str, str]]) -> list[Any]:
        values = self._ask('read', items=items).get('values')
        if not isinstance(values, list) or len(values) != len(items):
            self.close()
            raise Disconnected('the bridge answered another number of values')
        return values

    def _ask(self, op: str, **fields: Any) -> dict[str, Any]:
        if self._bridge is None:
            raise Disconnected('not open')
        return self._bridge.ask(op, self.params.timeout_s, **fields)
