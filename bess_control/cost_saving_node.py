"""Shell of cost saving: runs the solver on a thread of its own, publishes plan and scores, takes prices."""

from __future__ import annotations

from array import array
from math import isnan
from typing import Any

from bess.msg import EnergyPlan, ForecastScores
from bess.srv import SetPrices
from bess_core import qos
from bess_core.clock import join_stamp
from bess_core.convert import set_stamp, wall_stamp
from bess_core.values import Severity

from .mode_node import ModeNode
from .modes.base import View
from .modes.cost_saving import CostSaving, PlanInForce
from .optimise.forecast import METHODS


class CostSavingNode(ModeNode):
    """`~/plan`, `~/forecast_scores` and the service `~/set_prices` beside what every mode has."""

    _mode: CostSaving

    def on_bess_configure(self) -> None:
        """See `ModeNode`."""
        super().on_bess_configure()
        self._plans = self.create_publisher(EnergyPlan, '~/plan', qos.STATE)
        self._scores = self.create_publisher(ForecastScores, '~/forecast_scores', qos.STATE)
        self._offered.append(self.create_service(SetPrices, '~/set_prices', self._on_prices))

    def on_bess_cleanup(self) -> None:
        """See `ModeNode`."""
        if hasattr(self, '_plans'):
            self.destroy_publisher(self._plans)
            self.destroy_publisher(self._scores)
            del self._plans
        super().on_bess_cleanup()

    def after_step(self, view: View) -> None:
        """Start a job when a new plan is due."""
        if self._job is None and (job := self._mode.job(view)) is not None:
            self.run_job(job)

    def job_done(self, result: Any, error: str) -> None:
        """A plan, or the reason why rules hold."""
        mode = self._mode
        mode.planned(result, error)
        self.set_fault(bool(error), 'cost_saving.no_plan', Severity.WARNING, f'no new plan, {error}')
        problems = [*mode.tariff.file.problems, *mode.tariff.delivered.problems]
        self.set_fault(bool(problems), 'cost_saving.prices', Severity.WARNING, '; '.join(problems[:5]))
        if not hasattr(self, '_plans'):
            return
        if result is not None:
            self._plans.publish(self._plan_message(result))
        self._scores.publish(self._score_message())

    def _plan_message(self, made: PlanInForce) -> EnergyPlan:
        plan, problem = made.plan, made.problem

        def doubles(values: Any) -> array[float]:
            return array('d', map(float, values))

        message = EnergyPlan(
            start=wall_stamp(made.start), step=float(made.step_s), currency=self.params.currency,
            power=doubles(plan.power), soc=doubles(plan.soc), grid=doubles(plan.grid), load=doubles(problem.load),
            pv=doubles(problem.pv), price_import=doubles(problem.buy), price_export=doubles(problem.sell),
            cost=float(plan.cost), cost_rules=float(made.cost_rules), cost_idle=float(made.cost_idle),
            saving=float(made.cost_rules - plan.cost), solve_time=float(plan.solve_time),
            source='; '.join(['optimiser', *plan.notes]), load_forecast=made.methods[0], pv_forecast=made.methods[1])
        set_stamp(message.header.stamp, self.clock, self.clock.now())
        return message

    def _score_message(self) -> ForecastScores:
        message = ForecastScores()
        for quantity, forecaster in (('load', self._mode.load), ('pv', self._mode.pv)):
            for method in METHODS:
                score = forecaster.scores[method]
                message.quantity.append(quantity)
                message.method.append(method)
                message.mae.append(float(score.mae))
                message.bias.append(float(score.bias))
                message.skill.append(float(forecaster.skill(method)))
                message.periods.append(len(score.errors))
                message.used.append(bool(forecaster.best == method and not isnan(score.mae)))
        set_stamp(message.header.stamp, self.clock, self.clock.now())
        return message

    def _on_prices(self, request: SetPrices.Request, response: SetPrices.Response) -> SetPrices.Response:
        starts = [join_stamp(t.sec, t.nanosec) for t in request.start]
        refused = self._mode.tariff.deliver(
            starts, list(request.price_import), list(request.price_export), self.clock.wall())
        response.accepted = not refused
        response.message = refused or f'{len(starts)} prices'
        if response.accepted:
            self._save()
            self._mode.replan()
        return response
