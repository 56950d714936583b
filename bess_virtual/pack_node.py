"""Pack nodes: modules in series and in parallel as one.

`pack` is made of logical batteries and is one itself: it takes orders and schedules. `bms_pack` is made of
battery management systems behind one converter and offers what one of them does, so that a unit takes it as its BMS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf, isnan
from typing import Any, ClassVar

from sensor_msgs.msg import BatteryState

from bess.msg import BatteryStatus
from bess.srv import GetStatus, SetContactor
from bess_core import qos
from bess_core.calls import Call
from bess_core.convert import battery_from_msg, battery_to_msg, battery_to_state
from bess_core.node import BessNode
from bess_core.params import param
from bess_core.ticker import Tick
from bess_core.values import BatteryReading, Quality, Severity

from . import pack
from .aggregate_node import GroupNode, GroupParams
from .allocation import Allocation

ANSWER_S = 10.0  # s, how long the modules may take to confirm a contactor order


@dataclass(frozen=True, kw_only=True)
class PackLayout:
    """How the modules are connected, and how far they may be apart."""

    series: int = param(1, '', 'modules in series per string, in the order given; strings are in parallel', low=1)
    max_voltage_difference: float = param(1.0, 'V', 'strings farther apart are not used in parallel',
                                          low=0.001, high=1000.0)
    max_soc_spread: float = param(0.1, '', 'difference of state of charge (fraction) of modules that is a fault',
                                  low=0.001, high=1.0)
    max_current_spread: float = param(inf, 'A', 'difference of the currents of strings in parallel (or of modules of '
                                                'the one string) that is a fault', low=0.0)


@dataclass(frozen=True, kw_only=True)
class PackParams(PackLayout, GroupParams):
    """Logical batteries in series and in parallel as one: series takes the weakest current, parallel adds up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        pack.groups(self.members, self.series)


@dataclass(frozen=True, kw_only=True)
class BmsPackParams(PackLayout):
    """Battery management systems in series and in parallel behind one converter, as the BMS of a unit."""

    members: list[str] = param(doc='battery management systems of the modules, string by string', ref='bms', owns=True)
    max_age: float = param(3.0, 's', 'older values are STALE', low=0.05, high=3600.0)
    invalid_after: float = param(15.0, 's', 'older values are INVALID', low=0.1, high=86400.0)

    def __post_init__(self) -> None:
        pack.groups(self.members, self.series)


class _Strings:
    """The strings of a pack at the last measurement, and each when it last took part."""

    def __init__(self) -> None:
        self.last_good: dict[str, pack.String] = {}
        self.refused = ''

    def measure(self, p: Any, members: dict[str, BatteryReading], now: float, passive: bool) -> BatteryReading:
        """The pack now; remembers who takes part."""
        strings = self.at(p, members, now)
        self.last_good.update({s.name: s for s in strings if s.usable})
        return pack.combine(strings, passive=passive, last_good=[self.last_good.get(s.name, s) for s in strings])

    def at(self, p: Any, members: dict[str, BatteryReading], now: float) -> list[pack.String]:
        """The strings now."""
        strings, self.refused = pack.strings_of(list(members), list(members.values()), p.series, now, p.max_age,
                                                p.invalid_after, p.max_voltage_difference)
        return strings

    def watch(self, node: BessNode, p: Any, reading: BatteryReading) -> None:
        """Faults of the pack."""
        uneven = pack.imbalance(reading, p.max_soc_spread, p.max_current_spread)
        if uneven:
            reading.limit_reasons.append(uneven)
        node.set_fault(bool(uneven), 'pack.imbalance', Severity.WARNING, uneven)
        node.set_fault(bool(self.refused), 'pack.voltage_mismatch', Severity.ERROR, self.refused)


class PackNode(GroupNode):
    """See `PackParams`."""

    Params: ClassVar[type] = PackParams

    def configure_battery(self) -> None:
        """Modules."""
        self._strings = _Strings()
        super().configure_battery()

    def combined(self, now: float) -> BatteryReading:
        """By current and voltage."""
        reading = self._strings.measure(self.params, self._members, now, passive=False)
        self._strings.watch(self, self.params, reading)
        return reading

    def divided(self, power: float, now: float) -> Allocation:
        """One current in a string; strings by energy or headroom."""
        return pack.divide(power, self._strings.at(self.params, self._members, now))

    def diagnostics(self) -> dict[str, Any]:
        """Values for people."""
        return {**super().diagnostics(), **_spreads(self.reading)}


class BmsPackNode(BessNode):
    """See `BmsPackParams`. `~/status`, `~/battery_state`, `~/get_status`, `~/set_contactor`, as one BMS."""

    role: ClassVar[str] = 'bms'
    Params: ClassVar[type] = BmsPackParams

    def on_bess_configure(self) -> None:
        """Listen to the modules and offer what a BMS offers."""
        self.reading = BatteryReading()
        self._strings = _Strings()
        self._members = {name: BatteryReading() for name in self.params.members}
        self._posted = False
        self._status = self.create_publisher(BatteryStatus, '~/status', qos.MEASUREMENT)
        self._state = self.create_publisher(BatteryState, '~/battery_state', qos.MEASUREMENT)
        self._listeners = [
            self.create_subscription(BatteryStatus, self.ctx.topic(f'{name}/status'), partial(self._on_module, name),
                                     qos.MEASUREMENT) for name in self._members]
        self._contactors = {name: self.create_client(SetContactor, self.ctx.topic(f'{name}/set_contactor'))
                            for name in self._members}
        self._services_own = [
            self.create_service(GetStatus, '~/get_status', self._on_get_status),
            self.create_deferred_service(SetContactor, '~/set_contactor', self._on_set_contactor)]
        self._measured_at = -inf
        self.every(0.2, self._on_tick, phase=0)

    def on_bess_cleanup(self) -> None:
        """Take it all back."""
        for listener in getattr(self, '_listeners', []):
            self.destroy_subscription(listener)
        for client in getattr(self, '_contactors', {}).values():
            self.destroy_client(client)
        for service in getattr(self, '_services_own', []):
            self.destroy_service(service)
        for publisher in (getattr(self, '_status', None), getattr(self, '_state', None)):
            if publisher is not None:
                self.destroy_publisher(publisher)
        self._listeners, self._contactors, self._services_own = [], {}, []
        self._status = self._state = None  # type: ignore[assignment]

    def _on_module(self, name: str, message: BatteryStatus) -> None:
        self._members[name] = battery_from_msg(message, self.clock)
        if not self._posted:  # what arrives at the same time counts together
            self._posted = True
            self.ctx.post(lambda: self._guarded(self._refresh))

    def _on_tick(self, _: Tick) -> None:
        now = self.clock.now()
        if now - self._measured_at > min(self.params.max_age, 1.0):
            self._refresh()  # nothing came from below: say how old it is by now

    def _refresh(self) -> None:
        self._posted = False
        if self._status is None:
            return
        now = self._measured_at = self.clock.now()
        self.reading = reading = self._strings.measure(self.params, self._members, now, passive=True)
        self._strings.watch(self, self.params, reading)
        self.progress += 1
        self._status.give(battery_to_msg(reading, self.clock, self.name))
        if self._state.get_subscription_count():
            self._state.publish(battery_to_state(reading, self.clock, self.name))
        self.set_fault(reading.quality != Quality.OK and reading.time > -inf, 'battery.stale', Severity.WARNING,
                       '; '.join(reading.missing[:3]))

    def _on_get_status(self, _: GetStatus.Request, response: GetStatus.Response) -> GetStatus.Response:
        self._refresh()
        response.status = battery_to_msg(self.reading, self.clock, self.name)
        response.fresh = self.reading.quality == Quality.OK
        if not response.fresh:
            response.message = '; '.join(self.reading.missing[:3])
        return response

    def _on_set_contactor(self, request: SetContactor.Request, answer: Callable[[Any], None]) -> None:
        """To all modules. Closing is refused while strings in parallel differ too much in voltage."""
        response = SetContactor.Response()
        if (request.charge or request.discharge) and (problem := self._why_not_close()):
            response.message = problem
            answer(response)
            return
        missing = [name for name, client in self._contactors.items() if not client.service_is_ready()]
        if missing:
            response.message = f'not there: {", ".join(missing)}; nothing was ordered'
            answer(response)
            return
        results: dict[str, str] = {}

        def done(name: str, said: Any, why: str) -> None:
            results[name] = why if said is None else '' if said.accepted else said.message or 'refused'
            if len(results) < len(self._contactors):
                return
            failed = [f'{n}: {results[n]}' for n in self._contactors if results[n]]
            response.accepted = not failed
            response.message = 'confirmed by all modules' if not failed else '; '.join(failed)
            self.set_fault(bool(failed), 'contactor.failed', Severity.ERROR, response.message)
            answer(response)

        for name, client in self._contactors.items():
            Call(self, client, SetContactor.Request(charge=request.charge, discharge=request.discharge), ANSWER_S,
                 partial(done, name), ANSWER_S / 3)

    def _why_not_close(self) -> str:
        """Why the strings must not be connected in parallel; '' when they may."""
        strings = self._strings.at(self.params, self._members, self.clock.now())
        if len(strings) < 2:
            return ''
        unknown = [s.name for s in strings if isnan(s.reading.voltage) or s.reading.quality != Quality.OK]
        if unknown:
            return f'voltage of {", ".join(unknown)} is not known: strings are not connected in parallel'
        volts = [s.reading.voltage for s in strings]
        if max(volts) - min(volts) > self.params.max_voltage_difference:
            shown = ', '.join(f'{s.name} {s.reading.voltage:.2f} V' for s in strings)
            return (f'voltages are {max(volts) - min(volts):.2f} V apart, allowed '
                    f'{self.params.max_voltage_difference:g} V: {shown}')
        return ''

    def diagnostics(self) -> dict[str, Any]:
        """Values for people."""
        r = self.reading
        return {'SoC': f'{r.soc:.3f}', 'voltage [V]': f'{r.voltage:.2f}', 'current [A]': f'{r.current:.2f}',
                'quality': Quality(r.quality).name, 'usable modules': f'{r.members_usable} of {r.members}',
                'missing': '; '.join(r.missing), 'limits': '; '.join(r.limit_reasons), **_spreads(r)}


def _spreads(r: BatteryReading) -> dict[str, str]:
    return {'SoC spread': f'{r.soc_spread:.3f}', 'voltage spread [V]': f'{r.voltage_spread:.2f}',
            'current spread [A]': f'{r.current_spread:.2f}'}


