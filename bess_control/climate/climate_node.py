"""Climate node: zones of a profile over I/O modules, climate devices and batteries; leased orders; interlock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf, isnan, nan
from typing import Any, ClassVar

from bess.msg import (
    BatteryStatus,
    ClimateSetpoint,
    ClimateStatus,
    ClimateZone,
    Event,
    IoStatus,
    OutputSetpoint,
    PowerProposal,
)
from bess.srv import ForceClimate
from bess_core import qos
from bess_core.convert import site_time, stamp, wall_stamp
from bess_core.leases import Numbers
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.ticker import Tick
from bess_core.values import ClimateMode, Quality, Severity

from . import profile
from .zone import OUTPUTS, Sample, Zone, ZoneOutput, device_order

PRIORITY = 240  # above every mode and grid service, below what faults ask for


@dataclass(frozen=True)
class ClimateParams:
    """Parameters of the climate node."""

    profile: str = param('small', '', 'climate profile: name of an installed one (small, medium, large) or a file')
    io: list[str] = param([], '', 'I/O modules that are used', ref='io')
    climate: list[str] = param([], '', 'climate sensors that are used', ref='climate')
    batteries: list[str] = param([], '', 'batteries whose temperatures are used', ref='bms')
    sensors: dict[str, Any] = param({}, '', 'zone -> list of sensors: "MODULE.INPUT" (degC) of an I/O module, or the '
                                    'name of a climate sensor or battery')
    outputs: dict[str, Any] = param({}, '', 'zone -> mapping of fan, heater, heater_board to "MODULE.OUTPUT"')
    devices: dict[str, Any] = param({}, '', 'zone -> list of climate devices (air conditioners, heaters) that heat '
                                    'and cool it: they are told mode and target temperature')
    cooling: str = param('cool', '', 'mode of a device while the fan of its zone would run', choices=['cool', 'fan'])
    battery: str = param('', '', 'battery whose charging is bound by the zones; empty = none', ref='battery')
    interlock: list[str] = param([], '', 'zones that bind it; empty = all')
    period: float = param(1.0, 's', 'how often the outputs are decided', low=0.05, high=60.0)
    longest_force: float = param(14400.0, 's', 'longest manual force', low=1.0, high=604800.0)

    def __post_init__(self) -> None:
        zones = {z.name: z for z in profile.load(self.profile)}
        for name in (*self.sensors, *self.outputs, *self.devices, *self.interlock):
            if name not in zones:
                raise ValueError(f'unknown zone {name!r}; {self.profile} has: {", ".join(zones)}')
        for name in zones:
            sensors = self.sensors.get(name)
            if not isinstance(sensors, list) or not sensors or not all(isinstance(s, str) for s in sensors):
                raise ValueError(f'sensors: {name} needs a list of sensors')
            for sensor in sensors:
                node = sensor.split('.')[0]
                known = self.io if '.' in sensor else [*self.climate, *self.batteries]
                if node not in known:
                    raise ValueError(f'sensors: {name}: {sensor!r} is not of {", ".join(known) or "any node given"}')
        told: list[str] = []
        for name, devices in self.devices.items():
            if not isinstance(devices, list) or not all(isinstance(d, str) and d in self.climate for d in devices):
                raise ValueError(f'devices: {name} needs a list of climate devices, named in `climate`, too')
            told += devices
        if twice := {d for d in told if told.count(d) > 1}:
            raise ValueError(f'devices: {", ".join(sorted(twice))} cannot be told by two zones')
        for name, outputs in self.outputs.items():
            if not isinstance(outputs, Mapping):
                raise ValueError(f'outputs: {name} is not a mapping')
            for output, target in outputs.items():
                if output not in zones[name].actuators:
                    raise ValueError(f'outputs: {name} has no {output!r}; it has: {", ".join(zones[name].actuators)}')
                if not isinstance(target, str) or target.count('.') != 1 or target.split('.')[0] not in self.io:
                    raise ValueError(f'outputs: {name}.{output}: {target!r} must be "MODULE.OUTPUT" of io')


class ClimateNode(BessNode):
    """`~/zone_NAME` per zone, `~/force`."""

    Params: ClassVar[type] = ClimateParams
    role: ClassVar[str] = 'climate_control'

    def on_bess_configure(self) -> None:
        """Listen and decide; outputs are ordered while active."""
        p, topic = self.params, self.ctx.topic
        self._zones = {z.name: Zone(z) for z in profile.load(p.profile)}
        self._samples: dict[str, list[Sample]] = {}  # sensor -> values
        self._humidity: dict[str, float] = {}
        self._numbers = Numbers(self.clock.now())
        self._turn = 0
        self.last: dict[str, ZoneOutput] = {}
        self._shown = {n: self.create_publisher(ClimateZone, f'~/zone_{n}', qos.STATE) for n in self._zones}
        self._orders = {n: self.create_publisher(OutputSetpoint, topic(f'{n}/output'), qos.SETPOINT) for n in p.io}
        self._told = {d: self.create_publisher(ClimateSetpoint, topic(f'{d}/setpoint'), qos.SETPOINT)
                      for devices in p.devices.values() for d in devices}
        # A module keeps only the newest order: its outputs take turns, and each has one turn per period.
        self._turns: dict[str, list[tuple[str, str, str]]] = {}  # module -> (zone, output, name)
        for zone, outputs in p.outputs.items():
            for output, target in outputs.items():
                module, name = target.split('.')
                self._turns.setdefault(module, []).append((zone, output, name))
        self._most = max(map(len, self._turns.values()), default=1)
        self._proposals = self.create_publisher(PowerProposal, topic('proposals'), qos.EVENT)
        self._events = self.create_publisher(Event, topic('events'), qos.EVENT)
        self._forced: set[tuple[str, str]] = set()  # zone, output
        self._own: list[tuple[Callable[[Any], Any], Any]] = [
            *((self.destroy_publisher, e) for e in (
                *self._shown.values(), *self._orders.values(), *self._told.values(), self._proposals, self._events)),
            (self.destroy_service, self.create_service(ForceClimate, '~/force', self._on_force))]
        for names, kind, taken in ((p.io, IoStatus, self._on_io), (p.climate, ClimateStatus, self._on_climate),
                                   (p.batteries, BatteryStatus, self._on_battery)):
            for name in names:
                self._own.append((self.destroy_subscription, self.create_subscription(
                    kind, topic(f'{name}/status'), partial(taken, name), qos.MEASUREMENT)))
        self.every(p.period, self._tick, phase=1)
        self.every(p.period / self._most, self._send, phase=2)

    def on_bess_deactivate(self) -> None:
        """Nothing: leases end, and each module sets its outputs to their safe values."""

    def on_bess_cleanup(self) -> None:
        """Take everything back."""
        for destroy, entity in getattr(self, '_own', []):
            destroy(entity)
        self._own = []

    # -- in ----------------------------------------------------------------------------------------

    def _on_io(self, name: str, m: IoStatus) -> None:
        at = site_time(self.clock, m.header.stamp) if m.quality != Quality.INVALID else -inf
        for input_name, value in zip(m.analog_input_names, m.analog_inputs, strict=False):
            self._samples[f'{name}.{input_name}'] = [Sample(float(value), at)]

    def _on_climate(self, name: str, m: ClimateStatus) -> None:
        at = site_time(self.clock, m.header.stamp) if m.quality != Quality.INVALID else -inf
        self._samples[name] = [Sample(m.temperature, at)]
        self._humidity[name] = m.humidity if at > -inf else nan

    def _on_battery(self, name: str, m: BatteryStatus) -> None:
        at = site_time(self.clock, m.header.stamp) if m.quality != Quality.INVALID else -inf
        self._samples[name] = [Sample(m.temperature_min, at), Sample(m.temperature, at)]

    def _on_force(self, request: ForceClimate.Request, response: ForceClimate.Response) -> ForceClimate.Response:
        zone, now = self._zones.get(request.zone), self.clock.now()
        if not request.by.strip():
            response.message = 'who forces is missing'
        elif zone is None:
            response.message = f'unknown zone {request.zone!r}; there is: {", ".join(self._zones)}'
        elif not isnan(request.value) and not request.duration <= self.params.longest_force:
            response.message = f'duration {request.duration:g} s is above {self.params.longest_force:g} s'
        else:
            response.message = zone.force(request.output, request.value, now + request.duration, now)
            response.accepted = not response.message
        if response.accepted:
            response.message = 'back to automatic' if isnan(request.value) else f'for {request.duration:g} s'
            key = (request.zone, request.output)
            if isnan(request.value):
                self._forced.discard(key)
                self._say_forced(key, 'released', f'by {request.by}')
            else:
                self._forced.add(key)
                self._say_forced(key, 'forced', f'{request.value:.0%} for {request.duration:g} s by {request.by}')
            self.log.info('force', zone=request.zone, output=request.output, value=request.value, by=request.by,
                          seconds=request.duration)
        return response

    # -- out ---------------------------------------------------------------------------------------

    def _tick(self, _: Tick) -> None:
        now, p = self.clock.now(), self.params
        self.progress += 1
        broken, barred = [], []
        for name, zone in self._zones.items():
            sensors = p.sensors[name]
            samples = [s for sensor in sensors for s in self._samples.get(sensor, [Sample(nan, -inf)])]
            out = self.last[name] = zone.tick(samples, now)
            for output in {o for z, o in self._forced if z == name} - out.forced.keys():
                self._forced.discard((name, output))
                self._say_forced((name, output), 'released', 'its time is over')
            if out.usable < out.sensors:
                broken.append(f'{name}: {out.usable} of {out.sensors} temperatures can be used')
            if (not p.interlock or name in p.interlock) and not (out.charge_allowed and out.discharge_allowed):
                barred.append(f'{name}: {next((r for r in out.reasons if r.startswith("no ")), "")}')
            self._shown[name].publish(self._message(name, out, sensors, now))
            if self.is_active:
                self._tell_devices(name, out, now)
        self.set_fault(bool(broken), 'climate.sensor', Severity.WARNING, '; '.join(broken))
        if p.battery:
            self.set_fault(bool(barred), 'climate.interlock', Severity.WARNING, '; '.join(barred))
            if barred and self.is_active:
                self._bound('; '.join(barred), now)

    def _say_forced(self, what: tuple[str, str], change: str, text: str) -> None:
        event = Event(kind='climate', source=self.get_name(), name='.'.join(what), change=change, text=text)
        event.header.stamp = wall_stamp(self.clock.wall())
        self._events.publish(event)

    def _send(self, _: Tick) -> None:
        """One order to each module."""
        if not self.is_active or not self.last:
            return
        now, self._turn = self.clock.now(), self._turn + 1
        for module, turns in self._turns.items():
            zone, output, name = turns[self._turn % len(turns)]
            message = OutputSetpoint(name=name, value=float(self.last[zone].outputs[output]), source=self.get_name(),
                                     lease=max((2.0 + self._most) * self.params.period, 1.0),
                                     sequence=self._numbers.next())
            message.header.stamp = stamp(self.clock, now)
            self._orders[module].publish(message)

    def _tell_devices(self, zone: str, out: ZoneOutput, now: float) -> None:
        mode, target = device_order(self._zones[zone].params, out.outputs, ClimateMode[self.params.cooling.upper()])
        for device in self.params.devices.get(zone, ()):
            message = ClimateSetpoint(mode=int(mode), temperature=float(target), source=self.get_name(),
                                      lease=max(3.0 * self.params.period, 1.0), sequence=self._numbers.next())
            message.header.stamp = stamp(self.clock, now)
            self._told[device].publish(message)

    def _bound(self, why: str, now: float) -> None:
        zones = [o for n, o in self.last.items() if not self.params.interlock or n in self.params.interlock]
        message = PowerProposal(
            source=self.get_name(), battery=self.params.battery, priority=PRIORITY,
            min_power=-inf if all(o.discharge_allowed for o in zones) else 0.0,
            max_power=inf if all(o.charge_allowed for o in zones) else 0.0, preferred_power=nan,
            preferred_reactive_power=nan, lease=max(3.0 * self.params.period, 1.0), reason=why[:200])
        message.header.stamp = stamp(self.clock, now)
        self._proposals.publish(message)

    def _message(self, name: str, out: ZoneOutput, sensors: list[str], now: float) -> ClimateZone:
        humid = [h for s in sensors if not isnan(h := self._humidity.get(s, nan))]
        message = ClimateZone(
            name=name, quality=0 if out.usable == out.sensors else 1 if out.usable else 2,
            temperature_min=float(out.coldest), temperature_max=float(out.hottest),
            humidity=float(max(humid, default=nan)), charge_allowed=out.charge_allowed,
            discharge_allowed=out.discharge_allowed, reason='; '.join(out.reasons),
            forced=', '.join(f'{n}={v:g} for {left:.0f} s' for n, (v, left) in out.forced.items()),
            **{o: float(out.outputs.get(o, nan)) for o in OUTPUTS})
        message.header.stamp = stamp(self.clock, now)
        return message

    def diagnostics(self) -> dict[str, Any]:
        """For people."""
        return {n: '; '.join(o.reasons) or 'at rest' for n, o in getattr(self, 'last', {}).items()}
