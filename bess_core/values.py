"""Readings: what a component measured, as plain values without ROS.

Field names equal those of the messages in ``msg/``, so that `bess_core.convert` copies them by name.
Signs are passive (positive = into the component), units are SI, NaN means "not measured". Times are
`float` seconds of the site clock (`bess_core.clock.Clock.now`), which runs on simulated time too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from math import inf, isnan, nan

NAN3 = (nan, nan, nan)


class Quality(IntEnum):
    """How far a value may be trusted; the worst member decides for a whole."""

    OK = 0
    STALE = 1
    INVALID = 2


class Mode(IntEnum):
    """Operating mode of a battery (`BatteryStatus.mode`)."""

    UNKNOWN = 0
    OFF = 1
    IDLE = 2
    CHARGING = 3
    DISCHARGING = 4
    FAULT = 5


class Contactor(IntEnum):
    """Which way current may flow (`BatteryStatus.contactor`)."""

    UNKNOWN = 0
    OPEN = 1
    CLOSED = 2
    CHARGE_ONLY = 3
    DISCHARGE_ONLY = 4


class ConverterState(IntEnum):
    """Operating state of a converter (`InverterStatus.state`)."""

    UNKNOWN = 0
    OFF = 1
    STANDBY = 2
    STARTING = 3
    RUNNING = 4
    FAULT = 5


class ClimateMode(IntEnum):
    """What an air conditioner or heater does (`ClimateStatus.mode`)."""

    UNKNOWN = 0
    OFF = 1
    HEAT = 2
    COOL = 3
    AUTO = 4
    FAN = 5


class Switch(IntEnum):
    """State of a digital input or output (`IoStatus`)."""

    OFF = 0
    ON = 1
    UNKNOWN = 255


class Severity(IntEnum):
    """Severity of a fault (`Fault.severity`)."""

    WARNING = 1
    ERROR = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True)
class Alarm:
    """A condition that a device reports or a driver detects; becomes a `Fault` while present."""

    id: str  # stable, e.g. "jbd.cell_overvoltage"
    severity: Severity
    text: str  # in words, with values and units


@dataclass(slots=True)
class BatteryReading:
    """One atomic snapshot of a battery. Fields as in `msg/BatteryStatus.msg`."""

    time: float = -inf  # s, when the oldest contributing sample was measured; -inf = never
    newest: float = -inf  # s, when the newest one was
    quality: Quality = Quality.INVALID
    mode: Mode = Mode.UNKNOWN
    contactor: Contactor = Contactor.UNKNOWN
    voltage: float = nan
    current: float = nan
    power: float = nan
    charge: float = nan
    charge_full: float = nan
    energy: float = nan
    energy_full: float = nan
    max_charge_current: float = nan
    max_discharge_current: float = nan
    max_charge_power: float = nan
    max_discharge_power: float = nan
    expected_energy_full: float = nan
    expected_charge_power: float = nan
    expected_discharge_power: float = nan
    soc: float = nan
    soh: float = nan
    temperature: float = nan
    temperature_min: float = nan
    cell_voltage_min: float = nan
    cell_voltage_max: float = nan
    cell_voltage_min_index: int = -1
    cell_voltage_max_index: int = -1
    energy_charged: float = nan
    energy_discharged: float = nan
    lead_time: float = nan  # s
    balance_power: float = nan
    soc_spread: float = nan
    voltage_spread: float = nan
    current_spread: float = nan
    setpoint: float = nan
    setpoint_source: str = ''
    members: int = 1
    members_usable: int = 1
    limit_reasons: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    # Of this battery's own plan; not taken from a received status.
    next_power: float = nan  # W
    next_change: float = nan  # absolute s; NaN = no change is planned
    # Not in BatteryStatus: cell level (topic ~/cells) and device alarms (faults).
    cells: tuple[float, ...] = ()  # V
    temperatures: tuple[float, ...] = ()  # degC
    balancing: tuple[bool, ...] = ()
    alarms: tuple[Alarm, ...] = ()


@dataclass(slots=True)
class ConverterReading:
    """One snapshot of a converter. Fields as in `msg/InverterStatus.msg`."""

    time: float = -inf
    quality: Quality = Quality.INVALID
    state: ConverterState = ConverterState.UNKNOWN
    grid_forming: bool = False
    voltage: tuple[float, float, float] = NAN3
    current: tuple[float, float, float] = NAN3
    active_power: float = nan
    reactive_power: float = nan
    apparent_power: float = nan
    frequency: float = nan
    dc_voltage: float = nan
    dc_current: float = nan
    dc_power: float = nan
    temperature: float = nan
    max_charge_power: float = nan
    max_discharge_power: float = nan
    max_apparent_power: float = nan
    setpoint: float = nan
    reactive_setpoint: float = nan
    lease_remaining: float = 0.0
    energy_import: float = nan
    energy_export: float = nan
    setpoint_source: str = ''
    limit_reasons: list[str] = field(default_factory=list)
    alarms: tuple[Alarm, ...] = ()


@dataclass(slots=True)
class MeterReading:
    """One snapshot of a meter. Fields as in `msg/MeterStatus.msg`."""

    time: float = -inf
    sequence: int = 0
    quality: Quality = Quality.INVALID
    voltage: tuple[float, float, float] = NAN3
    current: tuple[float, float, float] = NAN3
    phase_power: tuple[float, float, float] = NAN3
    active_power: float = nan
    reactive_power: float = nan
    apparent_power: float = nan
    power_factor: float = nan
    frequency: float = nan
    energy_import: float = nan
    energy_export: float = nan
    alarms: tuple[Alarm, ...] = ()


@dataclass(slots=True)
class IoReading:
    """One snapshot of an I/O module. Names -> values; what was not measured is UNKNOWN or NaN."""

    time: float = -inf
    quality: Quality = Quality.INVALID
    digital_inputs: dict[str, Switch] = field(default_factory=dict)
    digital_outputs: dict[str, Switch] = field(default_factory=dict)  # read back
    analog_inputs: dict[str, float] = field(default_factory=dict)  # SI
    analog_outputs: dict[str, float] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)  # of the analog values, '' = none
    alarms: tuple[Alarm, ...] = ()


@dataclass(slots=True)
class ClimateReading:
    """One snapshot of a climate device or sensor. Fields as in `msg/ClimateStatus.msg`."""

    time: float = -inf
    quality: Quality = Quality.INVALID
    mode: ClimateMode = ClimateMode.UNKNOWN
    heating: Switch = Switch.UNKNOWN
    cooling: Switch = Switch.UNKNOWN
    fan: Switch = Switch.UNKNOWN
    temperature: float = nan
    outside_temperature: float = nan
    humidity: float = nan
    pressure: float = nan
    gas_resistance: float = nan
    power: float = nan
    target_temperature: float = nan
    alarms: tuple[Alarm, ...] = ()


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answered. Empty strings where the device does not say."""

    manufacturer: str = ''
    model: str = ''
    serial: str = ''
    version: str = ''


def quality_of(age_s: float, max_age_s: float, invalid_after_s: float) -> Quality:
    """Quality of a value of this age: OK up to `max_age_s`, STALE up to `invalid_after_s`, then INVALID."""
    if isnan(age_s) or age_s > invalid_after_s:
        return Quality.INVALID
    return Quality.OK if age_s <= max_age_s else Quality.STALE


def finite_or(value: float, fallback: float) -> float:
    """`value`, or `fallback` where it is NaN (not measured)."""
    return fallback if isnan(value) else value


def smallest_known(*values: float) -> float:
    """The smallest of the values that are known; NaN when none is."""
    known = [v for v in values if not isnan(v)]
    return min(known) if known else nan
