"""Strato Pi boards through the files of their kernel module (role io).

Files and values: github.com/sfera-labs/strato-pi-kernel-module. Which of them exist depends on the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import ClassVar

from bess_core.params import param
from bess_core.values import Alarm, Identity, IoReading, Quality, Severity, Switch
from bess_drivers.device import BadValue, Disconnected, ReadOnlyError, Role
from bess_drivers.io.sysfs import read_bit, read_number, write_text
from bess_drivers.output_gate import OutputRule

INPUTS = {'button': 'button/status_deb', 'on_battery': 'ups/battery', 'watchdog_expired': 'watchdog/expired'}
OUTPUTS = {'relay': 'relay/status', 'led': 'led/status', 'shutdown': 'power/down_enabled'}
NUMBERS = {'button_presses': 'button/status_deb_cnt'}


@dataclass(frozen=True)
class StratoPiParams:
    """Settings of a board."""

    address: str = param('/sys/class/stratopi', doc='folder of the kernel module')


class StratoPi:
    """The board. `shutdown` starts the delayed power cycle of the board; it is leased like a relay."""

    Params: ClassVar[type] = StratoPiParams
    role: ClassVar[Role] = Role.IO

    def __init__(self, params: StratoPiParams, read_only: bool = False) -> None:
        self.root, self.read_only = Path(params.address), read_only

    def open(self) -> None:
        """Raises `Disconnected` when the kernel module is not loaded."""
        if not self.root.is_dir():
            raise Disconnected(f'{self.root} is not there; is the kernel module loaded?')

    def close(self) -> None:
        """Nothing is held."""

    def identify(self) -> Identity:
        """Raises `BadValue` when the folder has none of the known files."""
        if not any((self.root / p).exists() for p in (*INPUTS.values(), *OUTPUTS.values())):
            raise BadValue(f'{self.root} has none of the files of a Strato Pi')
        return Identity('Sfera Labs', 'Strato Pi')

    def _bits(self, places: dict[str, str]) -> dict[str, Switch]:
        return {n: Switch(read_bit(self.root / p)) for n, p in places.items() if (self.root / p).exists()}

    def read(self, now: float) -> IoReading:
        """All that the model has. Raises `DeviceError`."""
        self.open()
        inputs = self._bits(INPUTS)
        alarms = []
        if inputs.get('on_battery') is Switch.ON:
            alarms.append(Alarm('io.on_battery', Severity.WARNING, 'the board runs on its backup battery'))
        if inputs.get('watchdog_expired') is Switch.ON:
            alarms.append(Alarm('io.watchdog_expired', Severity.ERROR, 'the watchdog of the board expired'))
        return IoReading(
            time=now, quality=Quality.OK, digital_inputs=inputs, digital_outputs=self._bits(OUTPUTS),
            analog_inputs={n: read_number(self.root / p) for n, p in NUMBERS.items() if (self.root / p).exists()},
            alarms=tuple(alarms))

    def write_output(self, name: str, value: float) -> None:
        """0 or 1. Raises `ReadOnlyError`, `BadValue`, `Disconnected`."""
        if self.read_only:
            raise ReadOnlyError(f'{self.root} is read-only; {name} is not written')
        if name not in OUTPUTS or value not in (0.0, 1.0):
            raise BadValue(f'{name!r} cannot be set to {value:g}')
        write_text(self.root / OUTPUTS[name], str(int(value)), read_only=False)

    def output_rules(self) -> dict[str, OutputRule]:
        """Only what this model has."""
        return {n: OutputRule(nan if n == 'led' else 0.0, latched=n == 'led')
                for n, p in OUTPUTS.items() if (self.root / p).exists()}
