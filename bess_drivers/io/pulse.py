"""Energy meters with a pulse output (S0, optical sensor) at a pin of the computer (role meter).

Pulses are counted by the kernel's edge events or gpiozero (see `pins`), so that none between two polls is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan, nan
from typing import ClassVar

from bess_core.params import param
from bess_core.values import Identity, MeterReading, Quality
from bess_drivers.device import Role
from bess_drivers.io.pins import Backend, Pin, backend_for, parse_pin


@dataclass(frozen=True)
class PulseParams:
    """Settings of one meter."""

    address: str = param('', doc='gpio:/dev/gpiochip0 (libgpiod) or gpiozero: with or without a pin factory')
    pulse: str = param('', doc='pin of the imported energy: line, then active_low, pull=up|down, debounce_ms=; '
                               'e.g. "17 pull=up active_low debounce_ms=5"')
    export: str = param('', doc='the same of the exported energy; empty = none')
    pulses_per_kwh: float = param(1000.0, '1/kWh', 'as the meter says', low=0.01, high=1e6)
    zero_after_s: float = param(300.0, 's', 'so long without a pulse counts as no power', low=1.0, high=86400.0)
    energy_import: float = param(0.0, 'Wh', 'counter of the meter at the start; pulses are added to it', low=0.0,
                                 high=1e12)
    energy_export: float = param(0.0, 'Wh', 'the same of the exported energy', low=0.0, high=1e12)
    period: float = param(0.2, 's', 'how often the pulses are looked at', low=0.02, high=60.0)
    frozen_after: float = param(0.0, 's', 'values that do not move for so long raise a fault; 0 = off (a pulse meter '
                                          'stands still without load)', low=0.0, high=86400.0)

    def __post_init__(self) -> None:
        for text in filter(None, (self.pulse, self.export)):
            pin_of('pulse', text)


def pin_of(name: str, text: str) -> Pin:
    """The pin of a setting. Raises ValueError."""
    line, _, rest = text.strip().partition(' ')
    return parse_pin(f'{name}={line} button {rest}')


class PulsePower:
    """Power (W) and energy (Wh) of a pulse count. The power is that of the last interval between pulses."""

    def __init__(self, energy_per_pulse: float, zero_after: float, energy: float = 0.0) -> None:
        self.energy, self.power = energy, nan
        self._each, self._zero_after = energy_per_pulse, zero_after
        self._count, self._at, self._seen = -1, nan, False  # last count, time of its change, whether by a pulse

    def restart(self) -> None:
        """The count begins at 0 again; energy goes on."""
        self._count = 0

    def take(self, count: int, now: float) -> None:
        """The count at `now` (s)."""
        if isnan(self._at):
            self._count, self._at = count, now
            return
        new, self._count = count - self._count, count
        if new > 0:
            self.energy += new * self._each
            if self._seen and now > self._at:
                self.power = 3600.0 * new * self._each / (now - self._at)
            self._at, self._seen = now, True
        elif now - self._at >= self._zero_after:
            self.power = 0.0
        elif self._seen and now > self._at:
            # No pulse yet: it cannot be more than one pulse in this time.
            self.power = min(self.power, 3600.0 * self._each / (now - self._at))


class PulseMeter:
    """A `MeterDevice` that counts pulses; phases, voltages and currents are not known."""

    Params: ClassVar[type] = PulseParams
    role: ClassVar[Role] = Role.METER
    never_writes: ClassVar[bool] = True

    def __init__(self, params: PulseParams, read_only: bool = False, backend: Backend | None = None) -> None:
        self.params = params
        if not params.pulse:
            raise ValueError('pulse is missing; e.g. "17 pull=up active_low"')
        self._pins = {n: pin_of(n, t) for n, t in (('pulse', params.pulse), ('export', params.export)) if t}
        if len({p.line for p in self._pins.values()}) < len(self._pins):
            raise ValueError('pulse and export are the same line')
        self._backend = backend or backend_for(params.address)
        each = 1000.0 / params.pulses_per_kwh
        self._counters = {'pulse': PulsePower(each, params.zero_after_s, params.energy_import)}
        if params.export:
            self._counters['export'] = PulsePower(each, params.zero_after_s, params.energy_export)

    def open(self) -> None:
        """Take the pins. Raises `Disconnected`."""
        self._backend.open(self._pins, {})
        for counter in self._counters.values():
            counter.restart()

    def close(self) -> None:
        """Let them go; never raises."""
        self._backend.close()

    def identify(self) -> Identity:
        """Where the pulses come in."""
        return Identity(model=f'pulses at {self.params.address}')

    def read(self, now: float) -> MeterReading:
        """Power (+ = import) and energies; power is unknown until two pulses came. Raises `DeviceError`."""
        self._backend.read()  # says when the chip is gone
        presses = self._backend.presses()
        for name, counter in self._counters.items():
            counter.take(presses.get(name, 0), now)
        imported, exported = self._counters['pulse'], self._counters.get('export')
        power = imported.power - (exported.power if exported else 0.0) + 0.0
        return MeterReading(
            time=now, quality=Quality.OK, active_power=power, energy_import=imported.energy,
            energy_export=exported.energy if exported else nan)
