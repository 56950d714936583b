"""Cost saving: carries out the plan of the optimiser, and plain rules when there is none.

The mode measures load and generation for its forecasts, says when a new plan is due and what it is made
of (`job`), and turns the present step of the plan into a proposal: a plan that covers the load or takes
the surplus is carried out with the meter (self-consumption), so that a forecast that was a little wrong
costs nothing; only what goes beyond that is done as planned. The solver runs elsewhere: `job()` is a
function for another thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import floor, isfinite, isnan, nan
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bess_control.grid_loop import GridLoop, GridLoopParams
from bess_control.load_estimate import clamp
from bess_control.modes.base import ModeBase, ModeBaseParams, View, soc_problem
from bess_control.optimise import planner
from bess_control.optimise.forecast import Forecaster
from bess_control.optimise.rolling import carry_out
from bess_control.optimise.tariff import Tariff, read_csv
from bess_control.proposals import Proposal
from bess_control.words import watts
from bess_core.params import param

NO_LIMIT = 1e12  # W
PV_SHARE_UNKNOWN = 'the rest of the site as one'


@dataclass(frozen=True)
class CostSavingParams(GridLoopParams, ModeBaseParams):
    """Parameters of cost saving. Prices are per kWh in `currency`."""

    currency: str = param('EUR', '', 'currency of all prices, for people')
    import_price: float = param(0.30, '1/kWh', 'price of import where no other is known', low=-100.0, high=100.0)
    export_price: float = param(0.08, '1/kWh', 'paid for export where no other is known', low=-100.0, high=100.0)
    time_of_use: list[str] = param([], '', 'import prices by time of day, e.g. "0.19 22:00-06:00"')
    time_zone: str = param(
        '', '', 'time zone of times of use and of a price file without offsets; empty = of the machine')
    price_file: str = param(
        '', '', 'CSV file with day-ahead prices: time, import[, export]; read again when it changes')
    price_per: float = param(1.0, 'kWh', 'energy that prices of the file are for; 1000 = per MWh', low=0.001, high=1e6)
    grid_fee: float = param(
        0.0, '1/kWh', 'fees and taxes added to file and delivered import prices', low=-10.0, high=100.0)
    demand_price: float = param(0.0, '1/kW', 'price of the highest import of an accounting period', low=0.0, high=1e4)
    wear_price: float = param(0.04, '1/kWh', 'wear of the battery per kWh given out', low=0.0, high=10.0)
    charge_efficiency: float = param(0.95, '', 'stored / taken in', low=0.5, high=1.0)
    discharge_efficiency: float = param(0.95, '', 'given out / taken from store', low=0.5, high=1.0)
    min_soc: float = param(0.10, '', 'lowest planned state of charge (0..1)', low=0.0, high=1.0)
    max_soc: float = param(1.0, '', 'highest planned state of charge (0..1)', low=0.0, high=1.0)
    max_power: float = param(NO_LIMIT, 'W', 'most power that is planned', low=0.0, high=NO_LIMIT)
    import_limit: float = param(NO_LIMIT, 'W', 'import that the plan keeps to', low=0.0, high=NO_LIMIT)
    export_limit: float = param(NO_LIMIT, 'W', 'export (magnitude) that the plan keeps to', low=0.0, high=NO_LIMIT)
    grid_charging: bool = param(True, '', 'the battery may be charged from the grid')
    horizon_h: float = param(48.0, 'h', 'how far is planned', low=1.0, high=168.0)
    step_s: float = param(900.0, 's', 'step of the plan', low=60.0, high=3600.0)
    replan_s: float = param(900.0, 's', 'how often a new plan is made', low=30.0, high=86400.0)
    max_plan_age_s: float = param(
        7200.0, 's', 'age from which a plan is not carried out any more', low=60.0, high=86400.0)
    solve_limit_s: float = param(10.0, 's', 'longest time of the solver', low=0.1, high=300.0)
    pv_meter: str = param(
        '', '', 'meter in the line of the PV plant; without it the rest of the site is forecast as one', ref='meter')

    def __post_init__(self) -> None:
        if self.min_soc >= self.max_soc:
            raise ValueError(f'min_soc {self.min_soc:g} is not below max_soc {self.max_soc:g}')
        self.tariff()

    def tariff(self) -> Tariff:
        """The tariff without file and delivered prices. Raises ValueError for a bad time of use."""
        return Tariff(self.import_price, self.export_price, self.time_of_use, self.time_zone, self.grid_fee)


@dataclass
class PlanInForce:
    """A plan with its place in time, and what it was made of."""

    start: float  # epoch s
    step_s: float
    plan: planner.Plan
    problem: planner.Problem
    cost_rules: float
    cost_idle: float
    methods: tuple[str, str]  # of load and pv

    def index(self, wall: float) -> int:
        """Number of the step that holds at `wall`; -1 outside of the plan."""
        i = floor((wall - self.start) / self.step_s)
        return i if 0 <= i < len(self.plan.power) else -1


class CostSaving(ModeBase):
    """Charges and discharges so that energy costs least, over forecasts and prices of the next days."""

    Params: ClassVar[type] = CostSavingParams
    needs_meter: ClassVar[bool] = True
    meters: ClassVar[tuple[str, ...]] = ('pv_meter',)
    shell: ClassVar[str] = 'bess_control.cost_saving_node:CostSavingNode'

    params: CostSavingParams

    def __init__(self, params: CostSavingParams, source: str = 'cost_saving', battery: str = '',
                 meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self.loop = GridLoop(params, meter)
        self.tariff = params.tariff()
        self.load = Forecaster(params.step_s, low=0.0 if params.pv_meter else -np.inf)
        self.pv = Forecaster(params.step_s, high=0.0)
        self.plan: PlanInForce | None = None
        self.why_no_plan = 'no plan yet'
        self.peak = 0.0  # W, highest mean import of a step in this month
        self._month = ''
        self._grid = Forecaster(params.step_s).measured
        self._tried_at = -np.inf
        self._last_wall = nan
        self._file_seen = 0

    def reset(self) -> None:
        """See `ModeBase`. What was measured and the plan stay."""
        self.loop.reset()
        self._last_wall = nan

    # -- what it learns ----------------------------------------------------------------------------

    def _measure(self, view: View) -> None:
        wall, seconds = view.wall, view.wall - self._last_wall
        self._last_wall = wall
        if not 0.0 < seconds < 60.0:
            return
        rest, pv = self.loop.rest, 0.0
        if self.params.pv_meter:
            reading = view.meters.get('pv_meter')
            fresh = reading is not None and view.now - reading.time < 10.0
            pv = reading.active_power if fresh and reading is not None else nan
        self.load.add(wall, rest - pv, seconds)
        self.pv.add(wall, pv, seconds)
        done = self._grid.add(wall, self.loop.grid, seconds)
        if done is not None:
            month = np.datetime64(int(wall), 's').astype('datetime64[M]').astype(str)
            self.peak = self._grid.get(done) if month != self._month else max(self.peak, self._grid.get(done))
            self._month = month
            self.peak = max(self.peak, 0.0)
            self.dirty = done % 4 == 0

    # -- planning ----------------------------------------------------------------------------------

    def job(self, view: View) -> Callable[[], PlanInForce] | None:
        """A function that makes a new plan, for another thread; None while none is due."""
        p = self.params
        if view.now - self._tried_at < p.replan_s or self.problem:
            return None
        self._tried_at = view.now
        battery, wall = view.battery, view.wall
        start = floor(wall / p.step_s) * p.step_s
        count = max(round(p.horizon_h * 3600.0 / p.step_s), 1)
        load, pv, peak = self.load.frozen(), self.pv.frozen(), self.peak
        limits = (_limit(battery.max_charge_power, p.max_power), _limit(battery.max_discharge_power, p.max_power))
        soc, energy = battery.soc, battery.energy_full

        def make() -> PlanInForce:
            self.read_file()
            first = int(start // p.step_s)
            seen_load, method = load.predict(first, count)
            seen_pv, pv_method = pv.predict(first, count) if p.pv_meter else (np.zeros(count), PV_SHARE_UNKNOWN)
            buy, sell, _ = self.tariff.series(start, p.step_s, count)
            problem = planner.Problem(
                step_s=p.step_s, load=np.maximum(seen_load, 0.0), pv=seen_pv + np.minimum(seen_load, 0.0),
                buy=np.array(buy) / 1e3, sell=np.array(sell) / 1e3,
                battery=planner.Battery(energy, *limits, soc, p.min_soc, p.max_soc, p.charge_efficiency,
                                        p.discharge_efficiency, p.wear_price / 1e3),
                import_limit=p.import_limit if p.import_limit < NO_LIMIT else np.inf,
                export_limit=p.export_limit if p.export_limit < NO_LIMIT else np.inf,
                demand_price=p.demand_price / 1e3, peak_so_far=peak)
            plan = planner.solve(problem, p.solve_limit_s)
            if not p.grid_charging:
                surplus = np.maximum(-(problem.load + problem.pv), 0.0)
                notes = plan.notes
                plan = planner.account(problem, np.minimum(plan.power, surplus))
                plan.notes = notes
            return PlanInForce(start, p.step_s, plan, problem, planner.rules(problem).cost,
                               planner.idle(problem).cost, (method, pv_method))

        return make

    def replan(self) -> None:
        """Something changed: a new plan is due at once."""
        self._tried_at = -np.inf

    def planned(self, made: PlanInForce | None, error: str) -> None:
        """The job is done: a plan, or in words why there is none. The last plan holds until it is too old."""
        if made is not None:
            self.plan, self.why_no_plan = made, ''
        else:
            self.why_no_plan = error

    def read_file(self) -> None:
        """Read the price file when it changed. Raises ValueError or OSError when it can not be used."""
        if not self.params.price_file:
            return
        path = Path(self.params.price_file)
        seen = path.stat().st_mtime_ns
        if seen != self._file_seen:
            self.tariff.file = read_csv(path.read_text(encoding='utf-8'), self.params.time_zone, self.params.price_per)
            self._file_seen = seen

    # -- control -----------------------------------------------------------------------------------

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`."""
        loop, p = self.loop, self.params
        fresh = loop.look(view.meter, view.battery, view.granted, view.now)
        self.problem = loop.problem or soc_problem(view.battery)
        if self.problem:
            self.state = 'blind'
            return self.propose(view, 0.0, reason=self.problem)
        if not fresh or isnan(loop.rest):
            return None
        self._measure(view)
        rest, made = loop.rest, self.plan
        buy, sell, source = self.tariff.at(view.wall)
        index = -1 if made is None else made.index(view.wall)
        old = made is not None and view.wall - made.start > p.max_plan_age_s
        self.values = {'import_price_per_kwh': buy, 'export_price_per_kwh': sell, 'rest_w': rest, 'peak_w': self.peak}
        price = f'{buy:.3f} {p.currency}/kWh ({source})'
        if made is None or index < 0 or old:
            self.state = 'rules'
            why = self.why_no_plan or 'the plan is too old'
            if buy < 0.0 and p.grid_charging and view.battery.soc < p.max_soc:
                loop.release()
                power = min(_limit(view.battery.max_charge_power, p.max_power), max(p.import_limit - rest, 0.0))
                return self.propose(view, power, reason=f'rules ({why}): import is paid, {price}')
            return self._balance(view, f'rules ({why}): self-consumption, {price}')
        planned, grid = float(made.plan.power[index]), float(made.plan.grid[index])
        self.values |= {'planned_w': planned, 'planned_grid_w': grid}
        power = carry_out(planned, grid, rest)
        self.state = 'plan'
        if power == -rest:
            return self._balance(view, f'plan: self-consumption, {price}')
        loop.release()
        power = clamp(power, -p.max_power, p.max_power)
        return self.propose(view, self._within_soc(power, view), reason=f'plan: {watts(power)}, {price}')

    def _balance(self, view: View, reason: str) -> Proposal:
        power = self.loop.track(0.0, view.battery, view.granted, view.now)
        power = self._within_soc(clamp(power, -self.params.max_power, self.params.max_power), view)
        self.loop.asked(power)
        return self.propose(view, power, reason=reason)

    def _within_soc(self, power: float, view: View) -> float:
        soc = view.battery.soc
        if (power < 0.0 and soc <= self.params.min_soc) or (power > 0.0 and soc >= self.params.max_soc):
            return 0.0
        return power

    def save(self) -> dict[str, Any]:
        """What survives a restart: measurements, scores, the month's peak and delivered prices."""
        d = self.tariff.delivered
        return {'load': self.load.save(), 'pv': self.pv.save(), 'peak': self.peak, 'month': self._month,
                'prices': [d.starts, d.imports, [None if isnan(x) else x for x in d.exports]]}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what `save` gave."""
        self.load.restore(saved['load'])
        self.pv.restore(saved['pv'])
        self.peak, self._month = float(saved['peak']), str(saved['month'])
        starts, imports, exports = saved['prices']
        if starts:
            self.tariff.deliver(starts, imports, [nan if x is None else float(x) for x in exports], starts[0])


def _limit(of_battery: float, configured: float) -> float:
    """The smaller of both in W, 0 while the battery does not tell."""
    return min(of_battery, configured) if isfinite(of_battery) and of_battery > 0.0 else 0.0
