"""What the grid support functions share: the measured value, the response, the curve in force, what survives a restart.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, isnan, nan
from typing import Any, ClassVar

from bess_control.grid_support.curves import ActiveCurve, Curve, Response
from bess_control.modes.base import BoundParams, ModeBase, View
from bess_control.proposals import Proposal
from bess_core.params import param
from bess_core.values import Quality


@dataclass(frozen=True, kw_only=True)
class GridSupportParams(BoundParams):
    """Parameters of all grid support functions."""

    rated_power: float = param(unit='W', doc='rated active power: 1 pu', low=1.0, high=1e9)
    rated_apparent_power: float = param(
        0.0, 'VA', 'rated apparent power: 1 pu of reactive power; 0 = as rated_power', low=0.0, high=1e9)
    max_age_s: float = param(3.0, 's', 'age of the reading up to which it is used', low=0.1, high=60.0)
    hold_s: float = param(
        10.0, 's', 'how long the last answer is kept when the measurement is lost; then the function is neutral',
        low=0.0, high=3600.0)
    priority: int = param(230, '', 'Priority of the proposals.', low=0, high=255)

    @property
    def rated_va(self) -> float:
        """1 pu of apparent power in VA."""
        return self.rated_apparent_power or self.rated_power


class GridSupport(ModeBase):
    """What the functions share: the measured value, the response, the answer while it is lost."""

    needs_meter: ClassVar[bool] = True
    y_limit: ClassVar[float] = 1.0
    falling: ClassVar[bool] = False

    params: GridSupportParams

    def __init__(self, params: GridSupportParams, source: str = '', battery: str = '', meter: str = '') -> None:
        super().__init__(params, source, battery, meter)
        self.response = Response(getattr(params, 'response_s', 0.0))
        configured = self.configured()
        self.active = None if configured is None else ActiveCurve(configured, self.y_limit, self.falling)
        self._adopted_response = nan  # s; NaN = the configured one
        self._reverts_at = inf  # epoch s
        self._restored: dict[str, Any] = {}  # what was stored, until the time of day is known
        self._seen_at = -inf
        self._last: Proposal | None = None

    def reset(self) -> None:
        """See `ModeBase`."""
        self.response.reset()
        self._last = None

    def configured(self) -> Curve | None:
        """The curve of the parameters; None = this function has none."""
        text = getattr(self.params, 'curve', '')
        return Curve.parse(text, self.y_limit, self.falling) if text else None

    def adopt(self, x: Sequence[float], y: Sequence[float], response_s: float, reversion_s: float,
              now: float, wall: float) -> tuple[bool, str]:
        """Another curve (`srv/AdoptCurve.srv`). `wall`: epoch s. Returns (accepted, message)."""
        if self.active is None:
            return False, 'this function has no curve'
        if not isnan(response_s) and not 0.0 <= response_s <= 600.0:
            return False, f'response time is {response_s} s, allowed 0 to 600 s'
        refused = self.active.adopt(x, y, 0.0 if isnan(reversion_s) else reversion_s, now)
        if refused:
            return False, refused
        self._restored = {}
        self._respond_in(response_s)
        left = self.active.remaining(now)
        self._reverts_at = wall + left
        if self.active.adopted is None:
            return True, 'back to the configured curve'
        return True, 'adopted' + (f', reverts in {left:.0f} s' if left < inf else '')

    def _respond_in(self, response_s: float) -> None:
        self._adopted_response = response_s
        self.response.time_s = getattr(self.params, 'response_s', 0.0) if isnan(response_s) else response_s

    def _follow_adoption(self, now: float, wall: float) -> None:
        """Take up what was adopted before a restart, and give back what has had its time."""
        active = self.active
        if active is None:
            return
        if self._restored and isfinite(wall):
            s, self._restored = self._restored, {}
            left = 0.0 if s['reverts_at'] is None else s['reverts_at'] - wall
            if s['reverts_at'] is not None and left <= 0.0:
                self.dirty = True
            else:
                active.adopt(s['x'], s['y'], left, now)  # `restore` has checked it
                self._respond_in(nan if s['response'] is None else s['response'])
                self._reverts_at = wall + active.remaining(now)
        elif active.revert(now):
            self._respond_in(nan)
            self.dirty = True

    def save(self) -> dict[str, Any]:
        """What survives a restart: the adopted curve, and when it reverts."""
        active = self.active
        if self._restored:
            return self._restored
        if active is None or active.adopted is None:
            return {}
        return {'x': list(active.adopted.x), 'y': list(active.adopted.y),
                'response': None if isnan(self._adopted_response) else self._adopted_response,
                'reverts_at': None if self._reverts_at == inf else self._reverts_at,
                'instead_of': [list(active.configured.x), list(active.configured.y)]}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take back what `save` gave. Raises ValueError, KeyError or TypeError when that is no adoption.

        A curve that was configured since then is the later word: the adopted one is forgotten.
        """
        if not saved or self.active is None:
            return
        configured = self.active.configured
        if saved['instead_of'] != [list(configured.x), list(configured.y)]:
            return
        until, response = saved['reverts_at'], saved['response']
        curve = Curve.of([float(v) for v in saved['x']], [float(v) for v in saved['y']], self.y_limit, self.falling)
        if response is not None and not 0.0 <= float(response) <= 600.0:
            raise ValueError(f'response time is {response} s')
        if until is not None and not isfinite(float(until)):
            raise ValueError(f'reverts_at is {until}')
        self._restored = {**saved, 'x': list(curve.x), 'y': list(curve.y)}

    def measured(self, view: View) -> float:
        """The quantity that the function looks at; NaN unknown."""
        raise NotImplementedError

    def answer(self, value: float, view: View) -> Proposal:
        """What follows from it."""
        raise NotImplementedError

    def decide(self, view: View) -> Proposal | None:
        """See `ModeBase`."""
        self._follow_adoption(view.now, view.wall)
        value = self.measured(view)
        if isfinite(value):
            self.problem, self._seen_at = '', view.now
            self._last = self.answer(value, view)
            if self.active is not None:
                self.values['adopted'] = float(self.active.adopted is not None)
            return self._last
        self.problem = f'{self.what} is not measured'
        if self._last is not None and view.now - self._seen_at <= self.params.hold_s:
            p = self._last
            return self.propose(view, p.preferred_power, low=p.min_power, high=p.max_power,
                                reactive=p.preferred_reactive_power, reason=f'{self.problem}, last answer held')
        self.response.reset()
        self._last = None
        return self.propose(view, reactive=0.0 if self.reactive else nan, reason=f'{self.problem}: neutral')

    what: ClassVar[str] = 'the quantity'
    reactive: ClassVar[bool] = False

    def _curve(self, now: float) -> Curve:
        assert self.active is not None
        return self.active.curve(now)

    def _meter_ok(self, view: View) -> bool:
        m = view.meter
        return m is not None and m.quality is Quality.OK and -1.0 <= view.now - m.time <= self.params.max_age_s

    def _voltage(self, view: View, nominal: float, highest: bool = False) -> float:
        """Voltage in pu: mean of the measured phases, or the highest."""
        if not self._meter_ok(view) or view.meter is None:
            return nan
        known = [v for v in view.meter.voltage if isfinite(v) and v > 0.0]
        if not known:
            return nan
        return (max(known) if highest else sum(known) / len(known)) / nominal

    def _power(self, view: View) -> float:
        """Active power of the battery in pu of rated, + = injection."""
        power = view.granted if view.granted is not None and isfinite(view.granted) else view.battery.power
        return -power / self.params.rated_power if isfinite(power) else nan

    def _say_q(self, view: View, q: float, reason: str) -> Proposal:
        """`q` in pu, + = injection: the passive sign is the other one."""
        self.values['reactive_power_var'] = -q * self.params.rated_va
        kind = 'injecting' if q > 0.0 else 'absorbing'
        text = f'{kind} {abs(q) * self.params.rated_va:.0f} var' if q else '0 var'
        return self.propose(view, reactive=-q * self.params.rated_va, reason=f'{reason}: {text}')
