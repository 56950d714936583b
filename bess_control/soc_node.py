"""SoC node: a BMS with its state of charge and health estimated here; itself the BMS of a unit.

It stands between a BMS that tells none (or a poor) state of charge and the unit: voltages, currents, limits and
contactors are the BMS's own, passed on; state of charge, of health and capacity are those of `bess_control.soc`.
Where the BMS accepts balancing orders it also decides which cells are bled.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isfinite, isnan, nan
from pathlib import Path
from typing import Any, ClassVar

from sensor_msgs.msg import BatteryState

from bess.msg import BalanceSetpoint, BatteryStatus, CellArray
from bess.srv import GetStatus, SetContactor
from bess_core import qos
from bess_core.calls import Call
from bess_core.convert import battery_from_msg, battery_to_msg, battery_to_state, set_stamp, site_time
from bess_core.files import replace_file
from bess_core.node import BessNode
from bess_core.params import extract, param
from bess_core.ticker import Tick
from bess_core.values import BatteryReading, Quality, Severity, quality_of

from .soc import OCV_LFP, BalanceParams, Balancer, Sample, SocEstimator, SocParams

ANSWER_S = 12.0  # s, how long the BMS may take to confirm a contactor order
BALANCE_LEASE_S = 10.0  # s, of a balancing order; renewed with every look
BALANCE_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class SocNodeParams(SocParams):
    """State of charge and health of a battery whose BMS gives none or a poor one; see docs/storage.md."""

    bms: str = param(doc='battery management system that measures', ref='bms', owns=True)
    reference: str = param('check', '', 'use of the state of charge of the BMS: `check` = start value, and a '
                           'difference is a fault; `start` = start value only; `none`',
                           choices=['check', 'start', 'none'])
    ocv: list[float] = param([], '', 'open-circuit voltage of a cell at 25 degC: SoC (0..1), V, SoC, V ...; '
                                     'empty = LFP')
    series_cells: int = param(0, '', 'cells in series, where the BMS measures no cells: each counts as that share of '
                              'the pack; 0 = the BMS measures cells', low=0, high=1000)
    nominal_voltage: float = param(0.0, 'V', 'pack voltage that turns Ah into Wh; 0 = that of the BMS (its energy over '
                                   'its charge, or the present voltage)', low=0.0, high=2000.0)
    save_every: float = param(60.0, 's', 'how often state of charge and health are stored', low=1.0, high=3600.0)
    min_soh: float = param(0.7, '', 'state of health (0..1) below which the battery counts as worn out', low=0.0,
                           high=1.0)
    max_age: float = param(3.0, 's', 'older values are STALE', low=0.05, high=3600.0)
    invalid_after: float = param(15.0, 's', 'older values are INVALID', low=0.1, high=86400.0)
    balance: bool = param(False, '', 'order the balancing of cells; the BMS must accept such orders')
    balance_start_difference: float = param(0.010, 'V', 'cells further apart than this are balanced', low=0.0005,
                                            high=1.0)
    balance_stop_difference: float = param(0.005, 'V', 'until they are closer than this', low=0.0001, high=1.0)
    balance_min_voltage: float = param(3.35, 'V', 'only above: on a flat curve voltage says nothing of charge', low=0.0,
                                       high=10.0)
    balance_max_current: float = param(0.05, '1/h', 'discharging only below this share of the capacity per hour',
                                       low=0.0)
    balance_min_temperature: float = param(0.0, 'degC', 'only above', low=-60.0, high=120.0)
    balance_max_temperature: float = param(45.0, 'degC', 'only below: bleeding heats', low=-60.0, high=120.0)
    balance_max_time: float = param(14400.0, 's', 'then a pause of `balance_pause`', low=1.0, high=1e6)
    balance_pause: float = param(3600.0, 's', 'after balance_max_time', low=0.0, high=1e6)

    def __post_init__(self) -> None:
        if self.invalid_after < self.max_age:
            raise ValueError('invalid_after is below max_age')
        SocEstimator(self, ocv=self.curve)
        self.balancing  # noqa: B018 - its own check

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Pairs of state of charge and V. Raises ValueError."""
        if len(self.ocv) % 2:
            raise ValueError('ocv is a list of SoC, V, SoC, V ...')
        return list(zip(self.ocv[::2], self.ocv[1::2], strict=True)) or list(OCV_LFP)

    @property
    def balancing(self) -> BalanceParams:
        """Conditions of balancing. Raises ValueError."""
        return BalanceParams(
            start_difference=self.balance_start_difference, stop_difference=self.balance_stop_difference,
            min_voltage=self.balance_min_voltage, max_current=self.balance_max_current,
            min_temperature=self.balance_min_temperature, max_temperature=self.balance_max_temperature,
            max_time=self.balance_max_time, pause=self.balance_pause)


def sample(b: BatteryReading, p: SocNodeParams) -> Sample:
    """What the estimator sees of a reading. Cells of which only the pack is measured count as equal."""
    low, high = b.cell_voltage_min, b.cell_voltage_max
    if p.series_cells and isnan(low):
        low = high = b.voltage / p.series_cells
    return Sample(b.time, b.current, low, high, b.temperature, nan if p.reference == 'none' else b.soc)


def estimated(b: BatteryReading, e: SocEstimator, p: SocNodeParams, now: float) -> BatteryReading:
    """The reading with charge, energy, state of charge and of health of the estimator, as old as it is."""
    full = e.capacity
    volts = p.nominal_voltage or (b.energy_full / b.charge_full if b.charge_full > 0.0 else nan)
    if isnan(volts):
        volts = b.voltage
    quality = max(b.quality, quality_of(now - b.time, p.max_age, p.invalid_after))
    return replace(
        b, quality=quality, soc=e.soc, soh=e.soh, charge_full=full, charge=e.soc * full, energy_full=full * volts,
        energy=e.soc * full * volts)


class SocNode(BessNode):
    """See `SocNodeParams`. `~/status`, `~/battery_state`, `~/cells`, `~/get_status`, `~/set_contactor`, as one BMS."""

    role: ClassVar[str] = 'bms'
    Params: ClassVar[type] = SocNodeParams

    def on_bess_configure(self) -> None:
        """Take up what was stored, listen to the BMS, and offer what a BMS offers."""
        p = self.params
        self.reading = BatteryReading()
        self._source = BatteryReading()
        self._cells: tuple[float, ...] = ()
        self._cells_at = self._looked_at = self._stepped = -inf
        self.estimator = SocEstimator(extract(SocParams, p), ocv=p.curve)
        self.balancer = Balancer(p.balancing)
        self._file = self.ctx.state_dir / 'soc' / f'{self.get_name()}.json'
        self._writer: threading.Thread | None = None
        self._resume()
        topic = self.ctx.topic
        self._status = self.create_publisher(BatteryStatus, '~/status', qos.MEASUREMENT)
        self._state = self.create_publisher(BatteryState, '~/battery_state', qos.MEASUREMENT)
        self._cells_out = self.create_publisher(CellArray, '~/cells', qos.MEASUREMENT)
        self._balance = self.create_publisher(BalanceSetpoint, topic(f'{p.bms}/balance'), qos.SETPOINT)
        self._contactor = self.create_client(SetContactor, topic(f'{p.bms}/set_contactor'))
        self._own: list[Any] = [
            self.create_subscription(BatteryStatus, topic(f'{p.bms}/status'), self._on_bms, qos.MEASUREMENT),
            self.create_subscription(CellArray, topic(f'{p.bms}/cells'), self._on_cells, qos.MEASUREMENT)]
        self._offered: list[Any] = [
            self.create_service(GetStatus, '~/get_status', self._on_get_status),
            self.create_deferred_service(SetContactor, '~/set_contactor', self._on_set_contactor)]
        self.every(0.2, self._on_tick, phase=0)
        self.every(p.save_every, lambda _: self._save())
        if p.balance:
            self.every(BALANCE_EVERY_S, self._on_balance)

    def on_bess_deactivate(self) -> None:
        """No cell stays bled by us."""
        self._order_balance(())

    def on_bess_cleanup(self) -> None:
        """Store, and take it all back."""
        if not hasattr(self, '_own'):
            return
        if self._writer is not None:
            self._writer.join(5.0)
        self._note(_store(self._file, json.dumps(self.estimator.saved()))
                   if isfinite(self.estimator.soc) else '')
        for subscription in self._own:
            self.destroy_subscription(subscription)
        for service in self._offered:
            self.destroy_service(service)
        self.destroy_client(self._contactor)
        for publisher in (self._status, self._state, self._cells_out, self._balance):
            self.destroy_publisher(publisher)
        del self._own
        self._status = None  # type: ignore[assignment]

    # -- what survives a restart -------------------------------------------------------------------

    def _resume(self) -> None:
        try:
            self.estimator.resume(json.loads(self._file.read_text()))
            self.log.info('state of charge goes on', soc=round(self.estimator.soc, 3), soh=round(self.estimator.soh, 3))
        except FileNotFoundError:
            self.log.info('no state of charge is stored yet')
        except (OSError, ValueError) as error:
            self._note(f'{self._file}: {error}')

    def _save(self) -> None:
        """On a thread of its own: a disk may take its time. One at a time."""
        if self._writer is not None or not isfinite(self.estimator.soc):
            return
        text, file = json.dumps(self.estimator.saved()), self._file
        if self.clock.simulated:  # lock-step: there is no other thread, and nothing waits
            self._note(_store(file, text))
            return
        self._writer = threading.Thread(
            target=lambda: self.ctx.post(partial(self._written, _store(file, text))), name=f'{self.get_name()}.save',
            daemon=True)
        self._writer.start()

    def _written(self, problem: str) -> None:
        self._writer = None
        self._note(problem)

    def _note(self, problem: str) -> None:
        self.set_fault(bool(problem), 'soc.store', Severity.WARNING, problem)

    # -- measuring ---------------------------------------------------------------------------------

    def _on_bms(self, message: BatteryStatus) -> None:
        self._source = source = battery_from_msg(message, self.clock)
        if source.quality is Quality.OK and source.time > self._stepped:
            self._stepped = source.time
            if self.params.reference == 'start' and isfinite(self.estimator.soc):
                source = replace(source, soc=nan)
            self.estimator.step(sample(source, self.params))
        self._refresh()

    def _on_cells(self, message: CellArray) -> None:
        self._cells, self._cells_at = tuple(message.voltages), site_time(self.clock, message.header.stamp)
        if self._status is not None:
            self._cells_out.publish(message)

    def _on_tick(self, _: Tick) -> None:
        now = self.clock.now()
        if now - self._looked_at > min(self.params.max_age, 1.0):
            self._refresh()  # nothing came: say how old it is by now

    def _refresh(self) -> None:
        if self._status is None:
            return
        now = self._looked_at = self.clock.now()
        e, p = self.estimator, self.params
        self.reading = reading = estimated(self._source, e, p, now)
        self.progress += 1
        self._status.give(battery_to_msg(reading, self.clock, self.name))
        if self._state.get_subscription_count():
            self._state.publish(battery_to_state(reading, self.clock, self.name))
        heard = self._source.time > -inf
        self.set_fault(heard and reading.quality != Quality.OK, 'battery.stale', Severity.WARNING,
                       f'{p.bms}: {now - reading.time:.1f} s old')
        self.set_fault(heard and isnan(e.soc), 'soc.unknown', Severity.WARNING,
                       'nothing is stored, the BMS tells none, and the battery has not rested or been full or empty')
        self.set_fault(bool(e.suspect), 'soc.degraded', Severity.WARNING, e.suspect)
        self.set_fault(e.soh < p.min_soh, 'soc.worn_out', Severity.WARNING,
                       f'state of health is {e.soh:.1%}, lowest allowed {p.min_soh:.0%}')

    # -- balancing ---------------------------------------------------------------------------------

    def _on_balance(self, _: Tick) -> None:
        if not self.is_active:
            return
        now, b = self.clock.now(), self.reading
        fresh = b.quality is Quality.OK and now - self._cells_at <= self.params.max_age
        # A sensor that is unknown forbids; where only one temperature is told it is the hottest.
        self._order_balance(self.balancer.step(
            self._cells if fresh else (), b.current, self.estimator.capacity, b.temperature, now))

    def _order_balance(self, cells: tuple[bool, ...]) -> None:
        if not self.params.balance:
            return
        message = BalanceSetpoint(cells=list(cells), lease=BALANCE_LEASE_S, source=self.get_name())
        set_stamp(message.header.stamp, self.clock, self.clock.now())
        self._balance.publish(message)

    # -- services ----------------------------------------------------------------------------------

    def _on_get_status(self, _: GetStatus.Request, response: GetStatus.Response) -> GetStatus.Response:
        self._refresh()
        response.status = battery_to_msg(self.reading, self.clock, self.name)
        response.fresh = self.reading.quality == Quality.OK
        if not response.fresh:
            response.message = f'{self.params.bms}: no fresh values'
        return response

    def _on_set_contactor(self, request: SetContactor.Request, answer: Callable[[Any], None]) -> None:
        """Passed on; the answer is that of the BMS."""
        if not self._contactor.service_is_ready():
            answer(SetContactor.Response(message=f'{self.params.bms} is not there'))
            return

        def done(said: Any, why: str) -> None:
            answer(said or SetContactor.Response(message=f'{self.params.bms}: {why}'))

        Call(self, self._contactor, request, ANSWER_S, done, ANSWER_S / 3)

    def diagnostics(self) -> dict[str, Any]:
        """Values for people."""
        if not hasattr(self, 'estimator'):
            return {}
        e, r = self.estimator, self.reading
        return {'SoC': f'{e.soc:.3f}', 'SoC of the BMS': f'{self._source.soc:.3f}', 'SoH': f'{e.soh:.3f}',
                'capacity [Ah]': f'{e.capacity:.1f}', 'cycles': f'{e.cycles:.1f}', 'corrected by': e.corrected_by,
                'last correction': f'{e.drift:+.3f}', 'current offset [A]': f'{e.offset:.3f}', 'suspect': e.suspect,
                'balancing': (self.balancer.reason or 'on') if self.params.balance else 'not ours',
                'quality': Quality(r.quality).name}


def _store(file: Path, text: str) -> str:
    """Replace the file as a whole; what went wrong, '' = nothing."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, text)
    except OSError as error:
        return f'{file}: {error.strerror or error}'
    return ''


__all__: list[Any] = ['SocNode', 'SocNodeParams', 'estimated', 'sample']
