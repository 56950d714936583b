"""Faults that can be injected into a simulated device at run time.

A device asks `DeviceFaults` while it answers. Plant faults (cell voltage, temperature) are injected
into the physics instead; see `bess_sim.plant`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

#: name -> what it does (value in brackets)
DEVICE_FAULTS = {
    'no_answer': 'requests are swallowed',
    'late_answer': 'answers come late [value: s, default 2.0]',
    'wrong_unit_id': 'answers carry another unit id (Modbus) or register (JBD)',
    'modbus_exception': 'answers are an exception [value: code, default 4]; JBD: status 0x80',
    'flipped_bytes': 'one byte of each answer is inverted',
    'truncated_frame': 'answers stop half way',
    'frozen_value': 'measurements keep their present value',
    'alarm_bit': 'serial and CAN BMS: one more alarm is reported [value: its bit, counted through its alarm words]',
    'disconnect': 'connections are closed and refused until cleared (reconnect)',
}


@dataclass
class DeviceFaults:
    """The faults that are active at present; thread-safe enough for one writer and one reader."""

    active: dict[str, tuple[float, float]] = field(default_factory=dict)  # name -> (value, until monotonic)

    def inject(self, name: str, value: float = float('nan'), for_s: float = float('inf')) -> None:
        """Switch a fault on for `for_s` seconds. Raises ValueError for an unknown name."""
        if name not in DEVICE_FAULTS:
            raise ValueError(f'unknown fault {name!r}; known: {", ".join(DEVICE_FAULTS)}')
        self.active = {**self.active, name: (value, time.monotonic() + for_s)}

    def clear(self, name: str = '') -> None:
        """Switch one fault, or all with '', off."""
        self.active = {k: v for k, v in self.active.items() if name and k != name}

    def on(self, name: str) -> bool:
        """Whether a fault is active now."""
        entry = self.active.get(name)
        return entry is not None and time.monotonic() < entry[1]

    def value(self, name: str, default: float) -> float:
        """Value of an active fault, `default` when none was given."""
        value = self.active.get(name, (default, 0.0))[0]
        return default if value != value else value

    def alarm_bits(self, first: int, width: int) -> int:
        """The injected alarm as a word of `width` bits that begins at bit `first` of all alarm bits; 0 = not in it."""
        bit = int(self.value('alarm_bit', 0.0)) - first if self.on('alarm_bit') else -1
        return 1 << bit if 0 <= bit < width else 0
