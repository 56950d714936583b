"""The shortest way to a physical battery: a class with two functions, `refresh` and `set_current`.

Registered as an entry point of the group ``bess.batteries`` it becomes a node type, and the framework makes
a whole logical battery of it (`bess_virtual.physical_node`): schedule, leases, limits, ages, follow-error.

    class MyBattery:
        def __init__(self, params: Params) -> None: ...
        def refresh(self) -> Reading: ...              # ask the device
        def set_current(self, current: float) -> None: ...  # A, + = charging
    # optional: class Params (frozen dataclass of `bess_core.params.param`), open(), close()

Both block and are called from one worker thread, never at the same time. Whatever they raise counts as a
failed poll or order: `TimeoutError` as no answer, other `OSError` as a lost connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, isnan, nan
from typing import Any, ClassVar, Protocol

from bess_core.values import BatteryReading, Contactor, Identity, Mode, smallest_known

from .device import BadValue, DeviceError, Disconnected, NoAnswer, ReadOnlyError, Role

IDLE_A = 0.05


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What `refresh` returns. NaN = not measured."""

    voltage: float  # V
    current: float  # A, + = charging
    charge: float = nan  # Ah, that can be taken out
    charge_full: float = nan  # Ah, when full
    max_charge_current: float = nan  # A, magnitude
    max_discharge_current: float = nan  # A, magnitude
    temperature: float = nan  # degC
    soh: float = nan  # 0..1


class TwoFunctions(Protocol):
    """What a class of the group ``bess.batteries`` offers."""

    def refresh(self) -> Reading:
        """Read the device."""

    def set_current(self, current: float) -> None:
        """Order a current in A, + = charging; 0 = none."""


@dataclass(frozen=True)
class NoParams:
    """A battery class without parameters of its own."""


def params_of(battery_class: Any) -> type:
    """Parameter dataclass of a battery class."""
    found: type = getattr(battery_class, 'Params', NoParams)
    return found


class SimpleDevice:
    """A two-function battery as a device of a bus. Configured limits in A, inf = none."""

    role: ClassVar[Role] = Role.BATTERY

    def __init__(self, make: Callable[[], Any], *, max_charge_current: float = inf, max_discharge_current: float = inf,
                 read_only: bool = False) -> None:
        self._make = make
        self._battery: Any = None
        self._limits = (max_charge_current, max_discharge_current)
        self._read_only = read_only

    def open(self) -> None:
        """Make the driver object and let it connect."""
        if self._battery is None:
            self._battery = _call(self._make)
        if hasattr(self._battery, 'open'):
            _call(self._battery.open)

    def close(self) -> None:
        """Let it disconnect."""
        if self._battery is not None and hasattr(self._battery, 'close'):
            self._battery.close()

    def identify(self) -> Identity:
        """Its `identity` where it has one, else the name of its class."""
        found = getattr(self._battery, 'identity', None)
        return found if isinstance(found, Identity) else Identity(model=type(self._battery).__name__)

    def read(self, now: float) -> BatteryReading:
        """One refresh, checked. Raises `DeviceError`."""
        return reading_of(_call(self._battery.refresh), now, *self._limits)

    def set_current(self, current: float) -> None:
        """Order a current, A, + = charging. Raises `DeviceError`; `ReadOnlyError` before anything is called."""
        if self._read_only:
            raise ReadOnlyError('read_only is set')
        _call(lambda: self._battery.set_current(current))


def reading_of(values: Any, now: float, max_charge_current: float = inf,
               max_discharge_current: float = inf) -> BatteryReading:
    """A whole reading from the few values of a driver; energies at the present voltage (E = Q U).

    Limits are the tighter of measured and configured ones. Raises `BadValue` for what no battery can have.
    """
    if not isinstance(values, Reading):
        raise BadValue(f'refresh returned {type(values).__name__}, not a Reading')
    v = values
    for name in ('voltage', 'current'):
        _need(isfinite(_number(v, name)), name, getattr(v, name), 'a finite number')
    _need(v.voltage > 0.0, 'voltage', v.voltage, 'above 0 V')
    for name in ('charge', 'charge_full', 'max_charge_current', 'max_discharge_current', 'soh'):
        value = _number(v, name)
        _need(isnan(value) or 0.0 <= value < inf, name, value, 'at least 0, or NaN')
    _need(isnan(_number(v, 'temperature')) or abs(v.temperature) < 1000.0, 'temperature', v.temperature, 'in degC')
    charge = smallest_known(v.max_charge_current, max_charge_current if isfinite(max_charge_current) else nan)
    discharge = smallest_known(v.max_discharge_current,
                               max_discharge_current if isfinite(max_discharge_current) else nan)
    mode = Mode.IDLE if abs(v.current) < IDLE_A else Mode.CHARGING if v.current > 0.0 else Mode.DISCHARGING
    soc = min(v.charge / v.charge_full, 1.0) if v.charge_full > 0.0 else nan
    reasons = []
    if v.max_charge_current > max_charge_current or v.max_discharge_current > max_discharge_current:
        reasons.append('configured limit')
    return BatteryReading(
        time=now, newest=now, mode=mode, contactor=Contactor.UNKNOWN, voltage=float(v.voltage),
        current=float(v.current), power=v.voltage * v.current, charge=float(v.charge),
        charge_full=float(v.charge_full), energy=v.charge * v.voltage, energy_full=v.charge_full * v.voltage,
        max_charge_current=charge, max_discharge_current=discharge, max_charge_power=charge * v.voltage,
        max_discharge_power=discharge * v.voltage, soc=soc, soh=float(v.soh), temperature=float(v.temperature),
        limit_reasons=reasons)


def _number(values: Reading, name: str) -> float:
    value = getattr(values, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadValue(f'{name} is {value!r}, not a number')
    return float(value)


def _need(right: bool, name: str, value: Any, what: str) -> None:
    if not right:
        raise BadValue(f'{name} is {value!r}; must be {what}')


def _call(fn: Callable[[], Any]) -> Any:
    """Errors of a driver as those of a device. Others (a defect of the driver) pass; the bus reports them."""
    try:
        return fn()
    except DeviceError:
        raise
    except TimeoutError as error:
        raise NoAnswer(str(error) or 'no answer in time') from error
    except OSError as error:
        raise Disconnected(str(error) or type(error).__name__) from error


__all__ = ['Reading', 'SimpleDevice', 'TwoFunctions', 'params_of', 'reading_of']
