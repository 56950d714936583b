"""Modes on a virtual clock: a story is a table of "at time t: inputs -> what is proposed"."""

from __future__ import annotations

from datetime import datetime
from math import isnan, nan
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from bess_control.modes.base import Signal, View
from bess_control.proposals import Proposal
from bess_core.values import BatteryReading, MeterReading, Quality

ANY = object()


def wall(text: str, zone: str = 'Europe/Berlin') -> float:
    """Epoch seconds of a local time like "2026-03-02 14:00"."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def meter(power: float, now: float, **more: Any) -> MeterReading:
    """A fresh meter reading of a power in W; a new sample each time."""
    values = {'time': now, 'sequence': round(now * 1000) + 1, 'quality': Quality.OK, 'active_power': power, **more}
    return MeterReading(**values)


def view(now: float, *, grid: float | None = None, power: float = 0.0, soc: float = 0.5, energy: float = 10_000.0,
         granted: float | None = 0.0, at: float | None = None, inputs: dict[str, bool] | None = None,
         heard: float | None = None, voltage: float = nan, frequency: float = nan, quality: Quality = Quality.OK,
         **meters: float) -> View:
    """What a mode sees: `grid` W at the connection, the battery's `power` W, further meters by name."""
    battery = BatteryReading(time=now, newest=now, quality=quality, power=power, soc=soc, energy_full=energy,
                             max_charge_power=5000.0, max_discharge_power=5000.0)
    signals = {k: Signal(v, now if heard is None else heard) for k, v in (inputs or {}).items()}
    grid_meter = None if grid is None else meter(grid, now, voltage=(voltage,) * 3, frequency=frequency)
    return View(now=now, wall=1.77e9 + now if at is None else at, battery=battery, granted=granted, meter=grid_meter,
                meters={k: meter(v, now) for k, v in meters.items()}, signals=signals)


def same(value: float, wanted: Any, tolerance: float = 1.0) -> bool:
    """Equal within W; NaN equals NaN."""
    if wanted is ANY:
        return True
    return isnan(wanted) if isnan(value) else value == pytest.approx(wanted, abs=tolerance)


def tell(mode: Any, rows: list[tuple[float, dict[str, Any], dict[str, Any]]]) -> list[Proposal]:
    """Play the story: rows of (t, inputs of `view`, expected power, low, high, reactive, state, says)."""
    said = []
    for t, inputs, expected in rows:
        proposal = mode.decide(view(t, **inputs))
        assert proposal is not None, f't={t}: nothing was proposed'
        where = f't={t} {inputs}: {proposal}'
        assert proposal.problem() == '', where
        for key, value in (('power', proposal.preferred_power), ('low', proposal.min_power),
                           ('high', proposal.max_power), ('reactive', proposal.preferred_reactive_power)):
            if key in expected:
                assert same(value, expected[key]), f'{where}: {key}'
        if 'state' in expected:
            assert mode.state == expected['state'], where
        if 'says' in expected:
            assert expected['says'] in proposal.reason, where
        said.append(proposal)
    return said
