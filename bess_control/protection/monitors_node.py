"""Monitors node: reads what batteries, converters, meters and sensors publish and raises faults from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any, ClassVar

from bess.msg import BatteryStatus, ClimateStatus, InverterStatus, MeterStatus, SystemState
from bess_core import qos
from bess_core.convert import battery_from_msg, converter_from_msg, meter_from_msg, site_time
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.ticker import Tick
from bess_core.values import BatteryReading, ConverterReading, MeterReading

from ..site_state import SiteState
from .monitors import Monitors, settings_from


@dataclass(frozen=True)
class MonitorsParams:
    """Parameters of the monitors node."""

    batteries: list[str] = param([], '', 'batteries that are watched', ref='bms')
    converters: list[str] = param([], '', 'converters that are watched', ref='converter')
    meters: list[str] = param([], '', 'meters that are watched', ref='meter')
    climate: list[str] = param([], '', 'climate sensors whose humidity is watched', ref='climate')
    temperature_file: str = param('/sys/class/thermal/thermal_zone0/temp', '', 'temperature of this machine in '
                                  'thousandths of a degC; empty or missing = not watched')
    checks: dict[str, Any] = param({}, '', 'changed settings: monitor -> threshold, hysteresis, delay, max_age, '
                                   'severity, enabled')
    period: float = param(0.5, 's', 'how often everything is looked at', low=0.05, high=60.0)

    def __post_init__(self) -> None:
        settings_from(self.checks)


class MonitorsNode(BessNode):
    """Faults `monitor.*`."""

    Params: ClassVar[type] = MonitorsParams
    role: ClassVar[str] = 'monitors'

    def on_bess_configure(self) -> None:
        """Listen."""
        p, topic = self.params, self.ctx.topic
        self._monitors = Monitors(settings_from(p.checks), self.clock.now())
        self._readings: dict[str, Any] = {
            **{n: BatteryReading() for n in p.batteries}, **{n: ConverterReading() for n in p.converters},
            **{n: MeterReading() for n in p.meters}}
        self._humidity: dict[str, tuple[float, float]] = dict.fromkeys(p.climate, (nan, -inf))
        self._running = False
        self._owners = self._orders_by_way_of()
        self._asked: dict[str, float] = dict.fromkeys(self._owners, nan)  # W
        self._own = [self.create_subscription(SystemState, topic('system_state'), self._on_state, qos.STATE)]
        for names, kind, convert in ((p.batteries, BatteryStatus, battery_from_msg),
                                     (p.converters, InverterStatus, converter_from_msg),
                                     (p.meters, MeterStatus, meter_from_msg)):
            for name in names:
                self._own.append(self.create_subscription(
                    kind, topic(f'{name}/status'), partial(self._take, name, convert), qos.MEASUREMENT))
        for owner in set(filter(None, self._owners.values())):
            self._own.append(self.create_subscription(
                BatteryStatus, topic(f'{owner}/status'), partial(self._on_owner, owner), qos.MEASUREMENT))
        for name in p.climate:
            self._own.append(self.create_subscription(
                ClimateStatus, topic(f'{name}/status'), partial(self._on_climate, name), qos.MEASUREMENT))
        self.every(p.period, self._tick, phase=1)

    def on_bess_cleanup(self) -> None:
        """Take everything back."""
        for subscription in getattr(self, '_own', []):
            self.destroy_subscription(subscription)
        self._own = []

    def _orders_by_way_of(self) -> dict[str, str]:
        """The watched BMSes, which take no orders themselves -> the unit that does; '' = nothing of this site asks it
        alone."""
        nodes = self.ctx.site.nodes if self.ctx.site is not None else ()
        units = {n.params.bms: n.name for n in nodes if n.role == 'battery' and hasattr(n.params, 'bms')}
        bare = {n.name for n in nodes if n.role == 'bms'}
        return {name: units.get(name, '') for name in self.params.batteries if name in bare}

    def _on_owner(self, owner: str, m: BatteryStatus) -> None:
        for name, by in self._owners.items():
            if by == owner:
                self._asked[name] = m.setpoint

    def _take(self, name: str, convert: Any, message: Any) -> None:
        self._readings[name] = convert(message, self.clock)

    def _on_state(self, message: SystemState) -> None:
        self._running = message.state == SiteState.RUN

    def _on_climate(self, name: str, m: ClimateStatus) -> None:
        usable = m.quality != ClimateStatus.QUALITY_INVALID
        self._humidity[name] = (m.humidity if usable else nan, site_time(self.clock, m.header.stamp))

    def _tick(self, _: Tick) -> None:
        p, m, now = self.params, self._monitors, self.clock.now()
        self.progress += 1
        for name in p.batteries:
            asked = None if name not in self._owners else self._asked[name] if self._owners[name] else inf
            m.battery(name, self._readings[name], self._running, now, asked)
        for name in p.converters:
            m.converter(name, self._readings[name], now)
        for name in p.meters:
            m.meter(name, self._readings[name], now)
        for name, (humidity, at) in self._humidity.items():
            m.value('humidity', name, humidity, at, now)
        if p.temperature_file and (temperature := _temperature(p.temperature_file)) is not None:
            m.value('controller_temperature', 'controller', temperature, now, now)
        m.clock(self.clock.wall(), now)
        self.sync_alarms(m.alarms(), 'monitors')


def _temperature(path: str) -> float | None:
    """Of a file of the kernel (no device is asked); None where there is none, NaN where it holds no number."""
    try:
        return float(Path(path).read_text(encoding='ascii')) / 1000.0
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return nan
