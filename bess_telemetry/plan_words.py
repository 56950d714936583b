"""The plan of the cost optimiser and the scores of its forecasts, as people read them. Pure."""

from __future__ import annotations

from math import isnan
from typing import Any

Values = dict[str, Any]


def plan_lines(plan: Values, scores: Values | None) -> list[str]:
    """What the plan expects to cost and save, and how good its forecasts were."""
    unit = str(plan.get('currency', ''))
    hours = len(plan['power']) * float(plan['step']) / 3600.0
    lines = [
        f'next {hours:g} h: {plan["cost"]:.2f} {unit}, saves {plan["saving"]:.2f} {unit} against plain '
        f'self-consumption and {plan["cost_idle"] - plan["cost"]:.2f} {unit} against a battery at rest',
        f'{plan["source"]}; load by {plan["load_forecast"]}, PV by {plan["pv_forecast"]}',
    ]
    for quantity, method, mae, skill, used in _scored(scores):
        better = '' if isnan(skill) or method == 'persistence' else f', {skill:+.0%} against persistence'
        lines.append(f'forecast of {quantity} by {method}: {mae:.0f} W mean error{better}{" (used)" if used else ""}')
    return lines


def _scored(scores: Values | None) -> list[tuple[str, str, float, float, bool]]:
    if scores is None:
        return []
    rows = zip(scores['quantity'], scores['method'], scores['mae'], scores['skill'], scores['used'], strict=True)
    return [row for row in rows if not isnan(row[2])]


def plan_series(plan: Values) -> dict[str, list[list[float]]]:
    """Curves over time (epoch ms): powers in kW, state of charge and import price per kWh."""
    step = float(plan['step'])
    times = [round((float(plan['start']) + i * step) * 1000.0) for i in range(len(plan['power']))]

    def curve(name: str, scale: float) -> list[list[float]]:
        return [[t, round(float(v) * scale, 4)] for t, v in zip(times, plan[name], strict=True)]

    return {'battery (+ charging), kW': curve('power', 1e-3), 'grid (+ import), kW': curve('grid', 1e-3),
            'state of charge, %': curve('soc', 100.0), 'import price per kWh': curve('price_import', 1e3)}


def mode_line(mode: Values) -> str:
    """State of one mode in a line."""
    state = f' ({mode["state"]})' if mode.get('state') else ''
    return f'{mode["name"]}{state}: {mode.get("problem") or mode.get("text") or "active"}'
