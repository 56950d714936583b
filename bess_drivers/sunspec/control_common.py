"""What orders to a SunSpec inverter share, whichever models take them: leases, timers, steps that must all be tried."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, isfinite, isnan, nan

from bess_drivers.device import BadValue, Refused
from bess_drivers.sunspec.inverter_params import SunSpecInverterParams

LOCAL = 1  # LocRemCtl
INVERTER_MODELS = (103, 113, 102, 112, 101, 111)
OFF, SLEEPING, SHUTTING_DOWN, STANDBY = 0, 1, 5, 7  # 701 InvSt


def revert_seconds(lease: float, largest: int) -> int:
    """Reversion time of a lease: rounded up to whole seconds, at least 1 (0 would be "off").

    Raises `BadValue` for a lease that is not a positive number.
    """
    if not (isfinite(lease) and lease > 0):
        raise BadValue(f'lease of {lease} s')
    return min(max(1, ceil(lease)), largest)


class Timer:
    """When the device's reversion time has to be written again."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds = 0
        self._written = nan

    def due(self, seconds: int) -> bool:
        """Whether the time changed or a third of it has passed."""
        return seconds != self.seconds or not self._clock() - self._written < seconds / 3

    def written(self, seconds: int) -> None:
        """The device has it."""
        self.seconds, self._written = seconds, self._clock()


def check_reactive(params: SunSpecInverterParams, reactive: float) -> float:
    """`reactive`, or NaN where the device holds a power factor. Raises `BadValue` if both were asked for."""
    if isnan(params.power_factor):
        return reactive
    if not isnan(reactive) and reactive != 0:
        raise BadValue('power_factor is set: the device takes no reactive power beside it')
    return nan


def run_all(steps: list[Callable[[], None]]) -> None:
    """Do each step; a refusal does not prevent the other steps and is raised at the end."""
    refusal: Refused | None = None
    for step in steps:
        try:
            step()
        except Refused as error:
            refusal = refusal or error
    if refusal:
        raise refusal
