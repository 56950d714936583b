"""One test while it runs, and its report as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

from ..site_state import SiteState
from .sequence import Step


@dataclass
class Run:
    """One test."""

    id: int
    steps: tuple[Step, ...]
    by: str
    alive: float  # s
    started: float  # s, site clock
    heard: float  # s, last sign of the client
    expected: SiteState
    mode: str  # main mode before
    total: float  # s
    index: int = 0
    step_started: float = 0.0
    before: float = 0.0  # W, order before this step
    measured_before: float = nan  # W
    first: int = 0  # sample at which the step began
    called: bool = False
    answered: bool = False
    mode_changed: bool = False


def report(m: Any, run: Run, samples: Mapping[str, Sequence[float]], aborted: bool, ended: str) -> dict[str, Any]:
    """What is kept of a test, as JSON-able values. `m`: its `msg/TestState`; `ended`: local time in words."""
    return {
        'id': run.id, 'by': run.by, 'battery': m.battery, 'result': 'aborted' if aborted else 'done',
        'message': m.message, 'ended': ended, 'seconds': m.elapsed,
        'steps': [{f: _json(getattr(s, f)) for f in s.get_fields_and_field_types()} for s in m.steps],
        'samples': {n: [_json(round(v, 3)) for v in values] for n, values in samples.items()}}


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not isfinite(value) else value
