"""Units that device documents use, and what they are in the unit that this software uses."""

from __future__ import annotations

from typing import NamedTuple


class Unit(NamedTuple):
    """`SI value = device value * factor + offset`; only units of one `kind` can stand for each other."""

    kind: str
    factor: float
    offset: float = 0.0


UNITS: dict[str, Unit] = {
    '': Unit('number', 1.0),
    'V': Unit('V', 1.0), 'mV': Unit('V', 1e-3), 'kV': Unit('V', 1e3),
    'A': Unit('A', 1.0), 'mA': Unit('A', 1e-3), 'kA': Unit('A', 1e3),
    'W': Unit('W', 1.0), 'kW': Unit('W', 1e3), 'MW': Unit('W', 1e6),
    'var': Unit('var', 1.0), 'kvar': Unit('var', 1e3),
    'VA': Unit('VA', 1.0), 'kVA': Unit('VA', 1e3),
    'Hz': Unit('Hz', 1.0), 'mHz': Unit('Hz', 1e-3),
    'Wh': Unit('Wh', 1.0), 'kWh': Unit('Wh', 1e3), 'MWh': Unit('Wh', 1e6),
    'varh': Unit('varh', 1.0), 'kvarh': Unit('varh', 1e3),
    'Ah': Unit('Ah', 1.0), 'mAh': Unit('Ah', 1e-3),
    'degC': Unit('degC', 1.0), 'degF': Unit('degC', 5.0 / 9.0, -160.0 / 9.0), 'K': Unit('degC', 1.0, -273.15),
    's': Unit('s', 1.0), 'ms': Unit('s', 1e-3), 'min': Unit('s', 60.0), 'h': Unit('s', 3600.0),
    '%': Unit('fraction', 0.01), 'fraction': Unit('fraction', 1.0), 'permille': Unit('fraction', 1e-3),
    'ohm': Unit('ohm', 1.0), 'kohm': Unit('ohm', 1e3), 'mohm': Unit('ohm', 1e-3),
    'Pa': Unit('Pa', 1.0), 'hPa': Unit('Pa', 100.0), 'mbar': Unit('Pa', 100.0), 'kPa': Unit('Pa', 1e3),
    'W/s': Unit('W/s', 1.0), 'kW/s': Unit('W/s', 1e3),
}  # fmt: skip

#: What a positive number of the device means -> factor to our sign (positive = into the component).
POSITIVE: dict[str, float] = {
    'charging': 1.0, 'import': 1.0, 'consuming': 1.0, 'inductive': 1.0,
    'discharging': -1.0, 'export': -1.0, 'generating': -1.0, 'capacitive': -1.0,
}  # fmt: skip
