"""The last gate: stories on a virtual clock and properties under hostile input."""

from __future__ import annotations

from dataclasses import replace
from math import hypot, inf, isfinite, isnan, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_core.values import ConverterReading, ConverterState, Quality, Severity
from bess_drivers.gate import FOLLOW_ERROR, Gate, GateOutput, GateParams, Setpoint

PARAMS = GateParams(max_charge_power=3000.0, max_discharge_power=2500.0, expiry_ramp=1000.0)


def poll(now: float, power: float = 0.0, **changes: object) -> ConverterReading:
    values: dict = {'time': now, 'quality': Quality.OK, 'state': ConverterState.RUNNING,
                    'active_power': power, **changes}
    return ConverterReading(**values)


def order(power: float, now: float, sequence: int = 1, source: str = 'manager', lease: float = 1.0,
          term: int = 0, reactive: float = nan) -> Setpoint:
    return Setpoint(power, lease, source, sequence, now, term, reactive)


def ready(params: GateParams = PARAMS, now: float = 0.0) -> Gate:
    gate = Gate(params, 'inv')
    gate.start()
    gate.reading(poll(now))
    return gate


def tick(gate: Gate, now: float) -> GateOutput:
    """Tick and confirm what is to be written."""
    out = gate.tick(now)
    if out.write:
        gate.written(out.power, out.reactive_power, now)
    return out


def test_nothing_before_start_and_valid_read() -> None:
    gate = Gate(PARAMS, 'inv')
    assert gate.offer(order(500.0, 0.0), 0.0) == 'refused: not started'
    gate.start()
    assert gate.offer(order(500.0, 0.0), 0.0) == 'no valid reading of the device yet'
    gate.reading(poll(0.0, quality=Quality.STALE))
    assert gate.offer(order(500.0, 0.0), 0.0) == 'no valid reading of the device yet'
    out = gate.tick(0.0)
    assert (out.write, out.power) == (False, 0.0)
    gate.reading(poll(0.1))
    assert not gate.tick(0.1).write  # nobody asked: nothing to write
    assert gate.offer(order(500.0, 0.1), 0.1) == ''
    out = tick(gate, 0.1)
    assert (out.write, out.power, out.source, out.limit_reasons) == (True, 500.0, 'manager', ())
    assert out.lease_remaining == pytest.approx(1.0) and out.lease == 2.0
    assert gate.refused == 3


@pytest.mark.parametrize('bad, said', [
    (order(nan, 10.0), 'power is nan'),
    (order(inf, 10.0), 'power is inf'),
    (order(1.0, 10.0, reactive=-inf), 'reactive power is -inf'),
    (order(1.0, 10.0, lease=0.0), 'lease is 0.0 s, must be above 0'),
    (order(1.0, 10.0, lease=nan), 'lease is nan s, must be above 0'),
    (order(1.0, 10.0, lease=10.5), 'lease 10.5 s is longer than 10 s'),
    (order(1.0, 10.0, source=''), 'source is empty'),
    (order(1.0, nan), 'stamp is nan'),
    (order(1.0, 11.5), 'stamp is 1.5 s in the future'),
    (order(1.0, 9.0), 'expired on arrival: 1.0 s old, lease 1 s'),
    (order(1.0, 10.0, term=2), 'term 2 is lower than 3'),
    (order(1.0, 10.0, source='other', sequence=9, term=3), 'manager holds the lease for another 0.9 s'),
    (order(1.0, 10.0, sequence=5, term=3), 'sequence 5 is not above 5'),
    (order(1.0, 10.0, sequence=4, term=3), 'sequence 4 is not above 5'),
])
def test_refusals(bad: Setpoint, said: str) -> None:
    gate = ready(now=9.9)
    assert gate.offer(order(700.0, 9.9, sequence=5, term=3), 9.9) == ''
    assert gate.offer(bad, 10.0) == said
    assert tick(gate, 10.0).power == 700.0  # nothing of a refused order acts


def test_new_leader_takes_over_within_one_lease() -> None:
    gate = ready()
    assert gate.offer(order(700.0, 0.0, 1, 'old', term=1), 0.0) == ''
    assert gate.offer(order(-100.0, 0.2, 1, 'new', term=2), 0.2).startswith('old holds the lease')
    assert gate.offer(order(700.0, 0.3, 2, 'old', term=1), 0.3) == 'term 1 is lower than 2'
    assert gate.offer(order(-100.0, 1.1, 2, 'new', term=2), 1.1) == ''
    assert tick(gate, 1.1).power == -100.0


def test_a_restarted_source_may_count_from_one_after_the_lease() -> None:
    gate = ready()
    assert gate.offer(order(700.0, 0.0, 500), 0.0) == ''
    assert gate.offer(order(700.0, 0.5, 1), 0.5) == 'sequence 1 is not above 500'
    assert gate.offer(order(700.0, 1.2, 1), 1.2) == ''


def test_lease_ends_in_a_ramp_to_zero_then_silence() -> None:
    gate = ready(replace(PARAMS, max_reading_age_s=100.0))
    gate.offer(order(-2000.0, 0.0), 0.0)
    table = [(0.0, -2000.0), (0.9, -2000.0), (1.0, -2000.0), (1.5, -1500.0), (2.0, -1000.0),
             (2.9, -100.0), (3.0, 0.0), (3.1, 0.0)]
    for now, power in table:
        out = tick(gate, now)
        assert out.power == pytest.approx(power, abs=1e-6), now
        assert (out.lease_remaining > 0.0) is (now < 1.0)
        assert (out.source == '') is (now >= 1.0)
        if 1.0 <= now < 3.0:
            assert out.limit_reasons == ('lease ended, ramp to zero',)
    assert not gate.tick(3.2).write  # zero was confirmed


def test_ramp_counts_from_the_end_of_the_lease_even_if_a_tick_is_late() -> None:
    gate = ready(replace(PARAMS, max_reading_age_s=100.0))
    gate.offer(order(-2000.0, 0.0), 0.0)
    tick(gate, 0.1)
    assert tick(gate, 2.0).power == pytest.approx(-1000.0)
    assert tick(gate, 9.0).power == 0.0


def test_lease_counts_from_the_stamp() -> None:
    gate = ready()
    gate.offer(order(800.0, -0.6), 0.0)
    assert tick(gate, 0.1).lease_remaining == pytest.approx(0.3)
    gate = ready()
    gate.offer(order(800.0, 0.9), 0.0)  # a fast clock does not lengthen it
    assert tick(gate, 0.0).lease_remaining == pytest.approx(1.0)


def test_zero_is_repeated_until_it_is_confirmed() -> None:
    gate = ready()
    gate.offer(order(800.0, 0.0), 0.0)
    tick(gate, 0.0)
    gate.stop()
    for now in (0.1, 0.2, 0.3):  # the bus fails
        out = gate.tick(now)
        assert (out.write, out.power) == (True, 0.0)
    gate.written(0.0, nan, 0.3)
    assert not gate.tick(0.4).write


def test_stop_is_zero_at_once_and_holds() -> None:
    gate = ready()
    gate.offer(order(-2000.0, 0.0, reactive=300.0), 0.0)
    assert tick(gate, 0.0).reactive_power == 300.0
    gate.stop('stopped by operator')
    out = tick(gate, 0.01)
    assert (out.write, out.power, out.reactive_power) == (True, 0.0, 0.0)
    assert (out.lease_remaining, out.source) == (0.0, '')
    assert out.limit_reasons == ('stopped by operator',)
    assert gate.offer(order(-2000.0, 0.1, 2), 0.1) == 'refused: stopped by operator'
    assert tick(gate, 0.2).power == 0.0
    gate.start()
    assert tick(gate, 0.3).power == 0.0  # a start alone moves nothing
    assert gate.offer(order(-500.0, 0.4, 3), 0.4) == ''
    assert tick(gate, 0.4).power == -500.0


def test_stop_reaches_a_device_that_somebody_else_left_running() -> None:
    gate = Gate(PARAMS, 'inv')
    gate.stop()
    assert not gate.tick(0.0).write  # not before a valid read
    gate.reading(poll(0.1, 1500.0))
    out = tick(gate, 0.1)
    assert (out.write, out.power) == (True, 0.0)
    assert not gate.tick(0.2).write


# Tightest of configured (+3000/-2500), device and external limits
@pytest.mark.parametrize('asked, device, external, power, reason', [
    (2000.0, {}, None, 2000.0, ''),
    (9000.0, {}, None, 3000.0, 'configured limit: 9000 W limited to 3000 W'),
    (-9000.0, {}, None, -2500.0, 'configured limit: -9000 W limited to -2500 W'),
    (2000.0, {'max_charge_power': 1200.0}, None, 1200.0,
     'inv: device limit: 2000 W limited to 1200 W'),
    (2000.0, {'max_apparent_power': 900.0}, None, 900.0,
     'inv: device apparent power: 2000 W limited to 900 W'),
    (2000.0, {}, (800.0, 700.0, ('cell 7 at 3.62 V',)), 800.0,
     'bms: cell 7 at 3.62 V: 2000 W limited to 800 W'),
    (-2000.0, {}, (800.0, 700.0, ('bms: cell 2 at 2.9 V',)), -700.0,
     'bms: cell 2 at 2.9 V: -2000 W limited to -700 W'),
    (2000.0, {'max_charge_power': 500.0}, (800.0, 700.0, ()), 500.0,
     'inv: device limit: 2000 W limited to 500 W'),
    (2000.0, {}, (nan, nan, ()), 2000.0, ''),  # the BMS does not say, and is not required to
    (2000.0, {}, (-3.0, 0.0, ()), 0.0, 'bms: limit: 2000 W limited to 0 W'),
    (2000.0, {'state': ConverterState.FAULT}, None, 0.0,
     'inv: device is in fault: 2000 W limited to 0 W'),
])
def test_tightest_limit_and_its_name(asked: float, device: dict, external: tuple | None,
                                     power: float, reason: str) -> None:
    gate = ready()
    gate.reading(poll(0.0, **device))
    if external:
        gate.external(external[0], external[1], 0.0, external[2])
    assert gate.offer(order(asked, 0.0), 0.0) == ''
    out = tick(gate, 0.0)
    assert (out.power, out.limit_reasons) == (power, (reason,) if reason else ())


def test_a_limit_acts_at_once_also_on_the_ramp() -> None:
    gate = ready()
    gate.offer(order(2000.0, 0.0), 0.0)
    assert tick(gate, 0.0).power == 2000.0
    gate.external(300.0, 0.0, 0.1)
    assert tick(gate, 0.1).power == 300.0
    gate.external(3000.0, 0.0, 0.2)
    assert tick(gate, 0.2).power == 2000.0
    gate.external(300.0, 0.0, 1.1)
    assert tick(gate, 1.1).power == 300.0


@pytest.mark.parametrize('limits, said', [
    (None, 'bms: limits are not known'), ((3000.0, 3000.0, -5.1), 'bms: limits are 5.1 s old'),
    ((nan, nan, 0.0), 'bms: limit')])
def test_required_external_limits_fail_closed(limits: tuple | None, said: str) -> None:
    gate = ready(replace(PARAMS, external_required=True))
    if limits:
        gate.external(*limits)
    gate.offer(order(2000.0, 0.0), 0.0)
    out = tick(gate, 0.0)
    assert out.power == 0.0 and out.limit_reasons[0].startswith(said)


def test_lost_converter_is_zero() -> None:
    gate = ready()
    gate.offer(order(2000.0, 4.0, lease=5.0), 4.0)
    assert tick(gate, 5.0).power == 2000.0
    out = tick(gate, 5.5)
    assert out.power == 0.0 and 'inv: last valid reading 5.5 s ago' in out.limit_reasons[0]
    gate.reading(poll(5.6))
    assert tick(gate, 5.7).power == 2000.0  # the lease still lasts


def test_read_only_never_writes() -> None:
    gate = ready(replace(PARAMS, read_only=True))
    assert gate.offer(order(1000.0, 0.0), 0.0) == 'read only'
    gate.stop()
    assert not gate.tick(0.1).write and not gate.tick(9.0).write


def test_reactive_power_on_the_circle() -> None:
    gate = ready(GateParams(max_apparent_power=5000.0))
    gate.offer(order(3000.0, 0.0, reactive=-9000.0), 0.0)
    out = tick(gate, 0.0)
    assert (out.power, out.reactive_power) == (3000.0, pytest.approx(-4000.0))
    assert out.limit_reasons == ('apparent power 5000 VA: -9000 var limited to 4000 var',)
    gate.offer(order(3000.0, 0.1, 2), 0.1)
    assert isnan(tick(gate, 0.1).reactive_power)  # leave as it is
    gate.reading(poll(1.0))
    assert tick(gate, 1.2).reactive_power == 0.0  # the lease ended: back to zero, once
    assert isnan(tick(gate, 1.3).reactive_power)


def test_writes_only_changes_and_refreshes() -> None:
    gate = ready()
    writes = []
    for k in range(12):
        now = 0.1 * k
        gate.offer(order(1000.0 + 0.01 * k, now, k + 1), now)
        if tick(gate, now).write:
            writes.append(k)
    assert writes == [0, 5, 10]
    gate.offer(order(1010.0, 1.2, 50), 1.2)
    assert tick(gate, 1.2).write
    gate.offer(order(0.2, 1.3, 51), 1.3)
    assert tick(gate, 1.3).write
    gate.offer(order(0.0, 1.4, 52), 1.4)
    assert tick(gate, 1.4).write  # zero is always worth it


def follow(gate: Gate, powers: list[tuple[float, float, float]]) -> list[tuple[float, str]]:
    """(time, ordered, measured) -> alarms that appeared, with their time."""
    seen: list[tuple[float, str]] = []
    for k, (now, ordered, measured) in enumerate(powers):
        gate.reading(poll(now, measured))
        gate.offer(order(ordered, now, k + 1, lease=2.0), now)
        out = tick(gate, now)
        seen += [(now, a.text) for a in out.alarms if not any(a.text for t, _ in seen)]
    return seen


def test_follow_error_in_time() -> None:
    gate = ready(replace(PARAMS, follow_time_s=3.0, follow_confirm_s=1.0))
    story = [(0.1 * k, 0.0 if k < 50 else 2000.0, 0.0) for k in range(140)]
    seen = follow(gate, story)
    assert len(seen) == 1 and 8.9 < seen[0][0] < 9.3  # order at 5.0 + 3 s + 1 s
    assert gate.alarms[0].id == FOLLOW_ERROR and gate.alarms[0].severity is Severity.ERROR
    assert 'ordered 2000 W, measured 0 W' in gate.alarms[0].text
    gate.reading(poll(14.0, 1950.0))
    assert gate.tick(14.0).alarms == ()  # follows again


@pytest.mark.parametrize('share, alarm', [(0.95, False), (0.85, True), (-1.0, True), (0.0, True)])
def test_follow_tolerance_and_wrong_sign(share: float, alarm: bool) -> None:
    gate = ready(replace(PARAMS, follow_time_s=2.0))
    story = [(0.1 * k, -2000.0, -2000.0 * share) for k in range(60)]
    assert bool(follow(gate, story)) is alarm


def test_a_slow_but_sound_converter_is_no_follow_error() -> None:
    """Orders that jump all the time, answered with a lag of 1 s."""
    gate = ready(replace(PARAMS, follow_time_s=4.0))
    power, story = 0.0, []
    for k in range(400):
        ordered = (1500.0, -800.0, 2500.0, 0.0)[(k // 13) % 4]
        power += 0.1 * (ordered - power)
        story.append((0.1 * k, ordered, power))
    assert follow(gate, story) == []


def test_an_unmeasured_power_neither_raises_nor_clears() -> None:
    gate = ready(replace(PARAMS, follow_time_s=2.0))
    assert follow(gate, [(0.1 * k, 2000.0, nan) for k in range(60)]) == []
    follow(gate, [(6.0 + 0.1 * k, 2000.0, 0.0) for k in range(60)])
    assert gate.alarms
    gate.reading(poll(12.1, nan))
    assert gate.alarms


ANY = st.floats(allow_nan=True, allow_infinity=True)
ACTIONS = st.lists(st.one_of(
    st.tuples(st.just('offer'), st.builds(
        Setpoint, st.one_of(ANY, st.floats(-5e3, 5e3)), st.one_of(ANY, st.floats(0.1, 10.0)),
        st.sampled_from(['a', 'b', '']), st.integers(-5, 50), st.one_of(ANY, st.floats(0.0, 20.0)),
        st.integers(-1, 3), ANY)),
    st.tuples(st.just('poll'), st.builds(
        lambda p, c, d, s, q: (p, c, d, s, q), ANY, ANY, ANY, ANY, st.sampled_from(Quality))),
    st.tuples(st.just('external'), st.tuples(ANY, ANY)),
    st.tuples(st.just('stop'), st.none()), st.tuples(st.just('start'), st.none()),
    st.tuples(st.just('fail'), st.none())), max_size=30)


@given(actions=ACTIONS, steps=st.lists(st.floats(0.0, 2.0), min_size=30, max_size=30),
       required=st.booleans(), read_only=st.booleans())
@settings(max_examples=200)
def test_nothing_makes_it_leave_its_limits(actions: list[tuple], steps: list[float], required: bool,
                                           read_only: bool) -> None:
    params = GateParams(max_charge_power=3000.0, max_discharge_power=2500.0, max_apparent_power=3200.0,
                        external_required=required, read_only=read_only)
    gate = Gate(params)
    now, started, valid, device = 0.0, False, False, (nan,) * 3
    external, external_at, lease_until = None, -inf, -inf
    for (kind, value), dt in zip(actions, steps, strict=False):
        now += dt
        failing = kind == 'fail'
        if kind == 'offer':
            if gate.offer(value, now) == '':
                assert started and valid and not read_only
                assert 0.0 < value.lease <= 10.0 and isfinite(value.power) and value.source
                lease_until = now + value.lease
        elif kind == 'poll':
            power, charge, discharge, apparent, quality = value
            gate.reading(poll(now, power, max_charge_power=charge, max_discharge_power=discharge,
                              max_apparent_power=apparent, quality=quality))
            if quality is Quality.OK:
                valid, device = True, (charge, discharge, apparent)
        elif kind == 'external':
            gate.external(*value, now)
            external, external_at = value, now
        elif kind == 'stop':
            gate.stop()
            started = False
        elif kind == 'start':
            gate.start()
            started = True
        out = gate.tick(now)
        if out.write and not failing:
            gate.written(out.power, out.reactive_power, now)
        q = 0.0 if isnan(out.reactive_power) else out.reactive_power
        assert isfinite(out.power) and isfinite(q) and isfinite(out.lease)
        assert -2500.0 <= out.power <= 3000.0
        assert hypot(out.power, q) <= 3200.0 * (1.0 + 1e-9)
        assert not (out.write and (read_only or not valid))
        if out.power != 0.0:
            assert started and valid
            fresh = external is not None and now - external_at <= params.max_external_age_s
            limit = external if external is not None and fresh else (nan, nan)
            for high, low in ((device[0], device[1]), (device[2], device[2]), limit):
                assert isnan(high) or out.power <= max(high, 0.0)
                assert isnan(low) or out.power >= -max(low, 0.0)
            if required:
                assert fresh and not (isnan(limit[0]) and out.power > 0.0)
        if now > lease_until + 3000.0 / params.expiry_ramp:
            assert out.power == 0.0
        assert out.lease_remaining <= 10.0
