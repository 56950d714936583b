"""Simulated Carlo Gavazzi meters: the registers of every family, filled from the plant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot, isnan

from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_pdu import IllegalAddress
from bess_sim.plant_api import PlantApi

ID_CODE = 0x000B

#: name of a quantity -> (address, counts per unit, registers)
Layout = Mapping[str, tuple[int, float, int]]


def _triple(name: str, address: int, factor: float) -> dict[str, tuple[int, float, int]]:
    return {f'{name}{n + 1}': (address + 2 * n, factor, 2) for n in range(3)}


_FRONT: Layout = {
    **_triple('v', 0x0000, 10),
    **_triple('vll', 0x0006, 10),
    **_triple('i', 0x000C, 1000),
    **_triple('p', 0x0012, 10),
    'p': (0x0028, 10, 2),
}
_EM3XX: Layout = {
    **_FRONT,
    **_triple('s', 0x0018, 10),
    **_triple('q', 0x001E, 10),
    'v': (0x0024, 10, 2),
    'vll': (0x0026, 10, 2),
    's': (0x002A, 10, 2),
    'q': (0x002C, 10, 2),
    'pf': (0x0031, 1000, 1),
    'f': (0x0033, 10, 1),
    'import': (0x0034, 0.01, 2),
    'export': (0x004E, 0.01, 2),
}
_EM5XX_FINE: Layout = {
    'import_wh': (0x0500, 1, 4),
    'export_wh': (0x051C, 1, 4),
    'f_fine': (0x053C, 1000, 2),
}


@dataclass(frozen=True)
class Model:
    """One family: id code, values, where settings are, and which registers exist."""

    id_code: int
    layout: Layout
    served: tuple[range, ...]
    serial: int
    version: int
    settings: Mapping[int, str]  # address -> attribute of the simulator
    magnitude_current: bool = False


_FRONT_RANGE = range(0x0060)
_SETTINGS = {0x1002: 'phase_config', 0x1103: 'mode'}

MODELS: dict[str, Model] = {
    'em24': Model(
        1648,
        {**_FRONT, 'f': (0x0033, 10, 1), 'import': (0x0034, 0.01, 2), 'export': (0x004E, 0.01, 2)},
        (_FRONT_RANGE,), 0x5000, 0x0304,
        {0x1002: 'phase_config', 0xA000: 'application', 0xA100: 'switch_position'},
        magnitude_current=True,
    ),
    'em24_rtu': Model(
        71,
        {**_FRONT, 'f': (0x0037, 10, 1), 'import': (0x003E, 0.01, 2), 'export': (0x005C, 0.01, 2)},
        (_FRONT_RANGE,), 0x1300, 0x0303, {0x1102: 'phase_config', 0x1101: 'application'},
        magnitude_current=True,
    ),
    'em340': Model(340, _EM3XX, (_FRONT_RANGE,), 0x5000, 0x0302, _SETTINGS),
    'em530': Model(
        2096, {**_EM3XX, **_EM5XX_FINE}, (_FRONT_RANGE, range(0x0500, 0x0540)), 0x5000, 0x0302,
        _SETTINGS, magnitude_current=True,
    ),
    'em540': Model(
        1744, {**_EM3XX, **_EM5XX_FINE}, (_FRONT_RANGE, range(0x0500, 0x0540)), 0x5000, 0x0302,
        _SETTINGS, magnitude_current=True,
    ),
    'em111': Model(
        103,
        {
            'v1': (0x0000, 10, 2), 'i1': (0x0002, 1000, 2), 'p': (0x0004, 10, 2),
            's': (0x0006, 10, 2), 'q': (0x0008, 10, 2), 'f': (0x000F, 10, 1),
            'import': (0x0010, 0.01, 2), 'export': (0x0020, -0.01, 2),
        },
        (range(0x0022),), 0x5000, 0x0303, {0x1103: 'mode'},
    ),
}  # fmt: skip


def words(value: float, count: int) -> list[int]:
    """A value, rounded and clamped, as `count` signed registers, low word first; NaN is 0."""
    bound = 1 << (16 * count - 1)
    number = 0 if isnan(value) else max(-bound, min(bound - 1, round(value)))
    return [number >> (16 * i) & 0xFFFF for i in range(count)]


class CarloGavazziSimulator:
    """A `RegisterMap` of one meter. Settings may be changed at any time, also wrongly, by tests."""

    def __init__(self, plant: PlantApi, faults: DeviceFaults, model: str = 'em340') -> None:
        if model not in MODELS:
            raise ValueError(f'unknown model {model!r}; known: {", ".join(MODELS)}')
        self.plant, self.faults, self.model = plant, faults, MODELS[model]
        self.id_code = self.model.id_code
        self.application = 7  # H
        self.switch_position = 2
        self.phase_config = 0  # 3P.n
        self.mode = 1  # B
        self.serial = 'SIM0000000001'
        self.wh_counters = True  # EM5xx: False = a firmware without 0x0500
        self._power: float | None = None

    def override_power(self, watts: float | None) -> None:
        """Show this total power (W, + = import); None = the plant's again."""
        self._power = watts

    def read(self, function: int, address: int, count: int) -> list[int]:
        """See `RegisterMap`. The id code shows only when it is read alone."""
        del function  # FC3 and FC4 serve the same registers
        if (address, count) == (ID_CODE, 1):
            return [self.id_code]
        if count == 1 and address in self.model.settings:
            return [int(getattr(self, self.model.settings[address]))]
        if (address, count) == (self.model.version, 1):
            return [0x1203]
        if address == self.model.serial and count <= 7:
            padded = self.serial.encode('ascii').ljust(14, b'\0')
            return [padded[2 * i] << 8 | padded[2 * i + 1] for i in range(count)]
        block = next(
            (r for r in self.model.served if address in r and address + count <= r.stop), None
        )
        if block is None or (block.start == 0x0500 and not self.wh_counters):
            raise IllegalAddress
        image = self._image(address, count)
        return [image.get(a, 0) for a in range(address, address + count)]

    def write(self, address: int, values: list[int]) -> None:
        """A meter takes no writes."""
        raise IllegalAddress

    def _image(self, address: int, count: int) -> dict[int, int]:
        values = self.values()
        image: dict[int, int] = {}
        for name, (at, factor, size) in self.model.layout.items():
            if at < address + count and at + size > address:
                image |= dict(enumerate(words(values[name] * factor, size), at))
        return image

    def values(self) -> dict[str, float]:
        """All quantities in SI (energies Wh), signs as the registers carry them: + = import."""
        sample = self.plant.meter()
        live = [n for n in range(3) if not isnan(sample.voltage[n])] or [0]
        power = [0.0 if isnan(p) else p for p in sample.phase_power]
        if self._power is not None:
            power = [self._power / len(live) if n in live else 0.0 for n in range(3)]
        voltage = [0.0 if isnan(v) else v for v in sample.voltage]
        reactive = [sample.reactive_power / len(live) if n in live else 0.0 for n in range(3)]
        total, q = sum(power), sample.reactive_power
        out = {
            'p': total, 'q': q, 's': hypot(total, q),
            'pf': total / hypot(total, q) if total else 0.0,
            'f': sample.frequency, 'f_fine': sample.frequency,
            'import': sample.energy_import, 'export': sample.energy_export,
            'import_wh': sample.energy_import, 'export_wh': sample.energy_export,
            'v': sum(voltage) / len(live),
        }  # fmt: skip
        for n in range(3):
            # Line to line with 120 degrees between the phases: sqrt(a^2 + b^2 + ab).
            a, b = voltage[n], voltage[(n + 1) % 3]
            current = power[n] / voltage[n] if voltage[n] else 0.0
            out |= {
                f'v{n + 1}': voltage[n],
                f'vll{n + 1}': (a * a + b * b + a * b) ** 0.5 if a and b else 0.0,
                f'i{n + 1}': abs(current) if self.model.magnitude_current else current,
                f'p{n + 1}': power[n],
                f'q{n + 1}': reactive[n],
                f's{n + 1}': hypot(power[n], reactive[n]),
            }
        out['vll'] = sum(out[f'vll{n}'] for n in (1, 2, 3)) / 3
        return out
