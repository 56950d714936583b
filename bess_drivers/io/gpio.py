"""Pins of the computer as an I/O module: relays, LEDs, push buttons, contacts, emergency stop (role io)."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import ClassVar

from bess_core.params import param
from bess_core.values import Alarm, Identity, IoReading, Quality, Severity, Switch
from bess_drivers.device import BadValue, ReadOnlyError, Role
from bess_drivers.io.pins import Backend, backend_for, parse_pins
from bess_drivers.output_gate import OutputRule


@dataclass(frozen=True)
class GpioParams:
    """Settings of the pins of one chip."""

    address: str = param('', doc='gpio:/dev/gpiochip0 (libgpiod) or gpiozero: with or without a pin factory')
    pins: list[str] = param([], doc='one text each: name=line, then input (default), button, emergency_stop, relay '
                                    'or led, then active_low, pull=up|down, debounce_ms=')


class GpioModule:
    """The pins of one chip. An emergency stop contact is closed in normal operation: open is a critical fault."""

    Params: ClassVar[type] = GpioParams
    role: ClassVar[Role] = Role.IO

    def __init__(self, params: GpioParams, read_only: bool = False, backend: Backend | None = None) -> None:
        self.params = params
        self.pins = parse_pins(list(params.pins))
        if not self.pins:
            raise ValueError('pins is empty')
        self.read_only = read_only
        # Under read_only an output is not even requested: that alone would drive it.
        self._taken = {n: p for n, p in self.pins.items() if not (read_only and p.output)}
        self._backend = backend or backend_for(params.address)
        self._driven: dict[str, bool] = {}

    def open(self) -> None:
        """Take the pins; outputs are driven as they were last (at first: inactive). Raises `Disconnected`."""
        self._backend.open(self._taken, self._driven)

    def close(self) -> None:
        """Let them go; never raises."""
        self._backend.close()

    def identify(self) -> Identity:
        """The chip."""
        return Identity(model=self.params.address)

    def read(self, now: float) -> IoReading:
        """All pins. Raises `DeviceError`."""
        values, presses = self._backend.read(), self._backend.presses()
        shown = {n: Switch(values[n]) if n in values else Switch.UNKNOWN for n in self.pins}
        return IoReading(
            time=now, quality=Quality.OK,
            digital_inputs={n: v for n, v in shown.items() if not self.pins[n].output},
            digital_outputs={n: v for n, v in shown.items() if self.pins[n].output},
            analog_inputs={f'{n}_presses': float(count) for n, count in presses.items()},
            alarms=tuple(Alarm('io.emergency_stop', Severity.CRITICAL,
                               f'emergency stop {n} is pressed or its wire is open')
                         for n, p in self.pins.items() if p.kind == 'emergency_stop' and not values.get(n)))

    def write_output(self, name: str, value: float) -> None:
        """0 or 1. Raises `ReadOnlyError`, `BadValue`, `Disconnected`."""
        if self.read_only:
            raise ReadOnlyError(f'{self.params.address} is read-only; {name} is not driven')
        if name not in self.pins or not self.pins[name].output or value not in (0.0, 1.0):
            raise BadValue(f'{name!r} cannot be set to {value:g}')
        self._backend.write(name, bool(value))
        self._driven[name] = bool(value)

    def output_rules(self) -> dict[str, OutputRule]:
        """Relays fall open when nobody holds them; LEDs stay as somebody left them."""
        return {n: OutputRule(nan if p.kind == 'led' else 0.0, latched=p.kind == 'led')
                for n, p in self.pins.items() if p.output}
