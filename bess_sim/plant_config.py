"""The `simulation:` section of a site file, validated: what the virtual bench is made of.

Everything here is SI and passive-signed. An unknown key or a value out of range raises pydantic's
`ValidationError` (a ValueError) that names the place.
"""

from __future__ import annotations

from datetime import date, datetime, time
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra='forbid')


class PackConfig(Section):
    """A battery pack: equal cells in series, with spread."""

    chemistry: Literal['lfp', 'nmc'] = 'lfp'
    cells: Annotated[int, Field(ge=1, le=400)] = 16  # in series
    capacity_ah: Positive = 100.0  # Ah of a new cell
    initial_soc: Fraction = 0.5
    soh: Annotated[float, Field(gt=0.1, le=1)] = 1.0  # capacity now / capacity when new
    max_charge_current: Positive = 100.0  # A, the limit that the BMS tells
    max_discharge_current: Positive = 100.0  # A
    resistance: Positive | None = (
        None  # ohm per cell at 25 degC, R0 + R1; none = by chemistry, size
    )
    coulomb_efficiency: Annotated[float, Field(gt=0.8, le=1)] = 0.998
    capacity_spread: Annotated[float, Field(ge=0, le=0.1)] = 0.005  # standard deviations, relative
    resistance_spread: Annotated[float, Field(ge=0, le=0.3)] = 0.03
    soc_spread: Annotated[float, Field(ge=0, le=0.1)] = 0.004  # standard deviation, SoC
    balance_current: NotNegative = 0.1  # A, bleed of a cell that is ahead; 0 = none
    taper: Annotated[float, Field(ge=0, le=0.5)] = (
        0.0  # SoC at the ends over which told limits fall to 0
    )
    temperature_sensors: Annotated[int, Field(ge=1, le=8)] = 2
    initial_temperature: Finite | None = None  # degC; none = ambient
    cycles: Annotated[int, Field(ge=0)] = 0


class InverterConfig(Section):
    """An inverter. Loss (W) = fixed + proportional |S| + quadratic S^2 / rating.

    The default coefficients are a least-squares fit to the measured Sinamics S120 curve of
    Schimpe et al., Energy Procedia 155 (2018) 77-101 (peak near 97.6 %).
    """

    rating: Positive = 5000.0  # W and VA at AC
    max_charge_power: Positive | None = None  # W, none = rating
    max_discharge_power: Positive | None = None  # W, none = rating
    fixed_loss: NotNegative | None = None  # W while running; none = 0.62 % of the rating
    proportional_loss: Annotated[float, Field(ge=0, lt=0.2)] = 0.007
    quadratic_loss: Annotated[float, Field(ge=0, lt=0.2)] = (
        0.012  # at the rating, share of the rating
    )
    standby_power: NotNegative = 5.0  # W from AC while not running
    lag: NotNegative = 0.1  # s, time constant of the first-order response
    dead_time: NotNegative = 0.0  # s from an order to the first movement
    ramp: Positive = 20_000.0  # W/s, also var/s
    phase: Literal[0, 1, 2, 3] = 1  # 0 = three-phase, split evenly


class UnitConfig(Section):
    """One battery with its converter."""

    pack: PackConfig = PackConfig()
    inverter: InverterConfig = InverterConfig()


class HouseConfig(Section):
    """The load. `profile` is 'builtin' or the path of a CSV (see `bess_sim.profiles`)."""

    profile: str = 'builtin'
    time: str = 'time'  # names of CSV columns
    load: str = 'load'
    hold: bool = False  # CSV: value holds until the next row (True) or linear in between (False)
    scale: NotNegative = 1.0
    daily_energy: Positive = 10_000.0  # Wh per day, builtin only
    power_factor: Annotated[float, Field(gt=0.1, le=1)] = 0.97  # inductive
    phase: Literal[0, 1, 2, 3] = 0


class PvConfig(Section):
    """The PV plant. `profile` is 'builtin', 'none' or the path of a CSV; values are magnitudes."""

    profile: str = 'builtin'
    time: str = 'time'
    pv: str = 'pv'
    hold: bool = False
    scale: NotNegative = 1.0
    peak_power: NotNegative = 5000.0  # W, builtin only
    latitude: Annotated[float, Field(ge=-66, le=66)] = 50.0  # deg, builtin only
    cloudiness: Fraction = 0.3  # builtin only
    phase: Literal[0, 1, 2, 3] = 0


class GridConfig(Section):
    """The grid at the connection point: means and the size of small random variations."""

    voltage: Positive = 230.0  # V, phase to neutral
    frequency: Positive = 50.0  # Hz
    impedance: NotNegative = 0.15  # ohm per phase, resistive
    voltage_noise: NotNegative = 0.6  # V, standard deviation
    frequency_noise: NotNegative = 0.015  # Hz, standard deviation
    noise_time: Positive = 60.0  # s, correlation time of both


class PlantConfig(Section):
    """The whole physics: units, house, PV and grid."""

    seed: Annotated[int, Field(ge=0)] = 1
    start: str = (
        '2026-06-21T00:00:00'  # local time at plant time 0: ISO date and time, or HH:MM[:SS]
    )
    ambient: Annotated[float, Field(ge=-50, le=70)] = 25.0  # degC
    units: dict[str, UnitConfig] = Field(default_factory=dict)
    house: HouseConfig = HouseConfig()
    pv: PvConfig = PvConfig()
    grid: GridConfig = GridConfig()

    @field_validator('start', mode='before')
    @classmethod
    def _start_text(cls, value: object) -> object:
        """YAML reads an unquoted ISO time as datetime and an unquoted 18:30 as a base-60 number."""
        if isinstance(value, datetime):
            return value.isoformat()
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 86_400:
            seconds = value * 60 if value < 1440 else value  # H:MM or H:MM:SS
            return f'{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}'
        return value

    @field_validator('start')
    @classmethod
    def _start_valid(cls, value: str) -> str:
        parse_start(value)
        return value


class DeviceConfig(BaseModel):
    """One simulated device. Keys beyond these are options of its kind (checked by its builder)."""

    model_config = ConfigDict(frozen=True, extra='allow')

    kind: str
    unit: str = ''  # name in `units`; not needed for meters
    address: str = 'tcp://127.0.0.1:0'  # port 0 = chosen by the system; or serial:<link path>

    @property
    def options(self) -> dict[str, object]:
        """The keys that belong to the kind."""
        return dict(self.model_extra or {})


class BenchConfig(PlantConfig):
    """`PlantConfig` and the devices that stand in it."""

    devices: dict[str, DeviceConfig] = Field(default_factory=dict)

    @model_validator(mode='after')
    def _units_exist(self) -> BenchConfig:
        for name, device in self.devices.items():
            if device.unit and device.unit not in self.units:
                known = ', '.join(self.units) or 'none'
                raise ValueError(f'devices.{name}.unit: no unit {device.unit!r}; known: {known}')
            if name == 'world' or '/' in name or not name:
                raise ValueError(f'devices.{name}: not a possible device name')
        return self


#: Used when `start` is a time of day only: the builtin PV profile needs some date.
DEFAULT_DATE = date(2026, 6, 21)


def parse_start(text: str) -> tuple[datetime, bool]:
    """Local start time without zone, and whether a date was given. Raises ValueError."""
    try:
        return datetime.combine(DEFAULT_DATE, time.fromisoformat(text)).replace(tzinfo=None), False
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).replace(tzinfo=None), True
    except ValueError:
        raise ValueError(
            f'start: {text!r} is neither an ISO date and time nor HH:MM[:SS]'
        ) from None
