"""The last gate of outputs: leases end in the safe value, whatever is sent."""

from __future__ import annotations

from math import inf, isnan, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bess_drivers.output_gate import OutputGate, OutputRule


def gate(**rules: OutputRule) -> OutputGate:
    made = OutputGate(rules or {'relay': OutputRule()})
    made.start()
    made.reading({})
    return made


def write(g: OutputGate, now: float) -> dict[str, float]:
    due = g.tick(now)
    for name, value in due.items():
        g.written(name, value, now)
    return due


def test_a_lease_ends_in_the_safe_value() -> None:
    g = gate()
    assert write(g, 0.0) == {'relay': 0.0}  # whatever an earlier process left
    assert g.offer('relay', 1.0, 2.0, 'a', 1, 0.0, 0.0) == ''
    assert write(g, 0.0) == {'relay': 1.0}
    assert write(g, 1.9) == {}
    assert g.holdings(1.0) == {'relay': ('a', 1.0)}
    assert write(g, 2.0) == {'relay': 0.0}
    assert g.holdings(2.0) == {}


def test_a_lease_counts_from_its_stamp() -> None:
    g = gate()
    assert g.offer('relay', 1.0, 2.0, 'a', 1, -1.5, 0.0) == ''
    assert write(g, 0.5) == {'relay': 0.0}


@pytest.mark.parametrize(('offer', 'reason'), [
    (('pump', 1.0, 1.0, 'a', 1, 0.0), "no output 'pump'; there is: relay"),
    (('relay', nan, 1.0, 'a', 1, 0.0), 'value is nan'),
    (('relay', 0.5, 1.0, 'a', 1, 0.0), 'is 0 or 1'),
    (('relay', 1.0, 0.0, 'a', 1, 0.0), 'relay is not latched'),
    (('relay', 1.0, -1.0, 'a', 1, 0.0), 'must be above 0'),
    (('relay', 1.0, inf, 'a', 1, 0.0), 'lease is inf'),
    (('relay', 1.0, 4000.0, 'a', 1, 0.0), 'longer than 3600 s'),
    (('relay', 1.0, 1.0, '', 1, 0.0), 'source is empty'),
    (('relay', 1.0, 1.0, 'a', 1, 5.0), 'in the future'),
    (('relay', 1.0, 1.0, 'a', 1, -2.0), 'expired on arrival'),
    (('relay', 1.0, 1.0, 'b', 1, 0.0), 'holder holds the lease for another 10.0 s'),
    (('relay', 1.0, 1.0, 'holder', 5, 0.0), 'sequence 5 is not above 5'),
])
def test_refusals_say_why(offer: tuple, reason: str) -> None:
    g = gate()
    if 'hold' in reason or 'sequence' in reason:
        assert g.offer('relay', 1.0, 10.0, 'holder', 5, 0.0, 0.0) == ''
    assert reason in g.offer(*offer, 0.0)
    assert g.refused == 1


def test_nothing_before_start_and_a_reading_and_nothing_at_all_read_only() -> None:
    g = OutputGate({'relay': OutputRule()})
    assert g.offer('relay', 1.0, 1.0, 'a', 1, 0.0, 0.0) == 'refused: not started'
    g.start()
    assert g.offer('relay', 1.0, 1.0, 'a', 1, 0.0, 0.0) == 'no valid reading of the device yet'
    assert g.tick(0.0) == {}
    g = OutputGate({'relay': OutputRule()}, read_only=True)
    g.start()
    g.reading({'relay': 1.0})
    assert g.offer('relay', 1.0, 1.0, 'a', 1, 0.0, 0.0) == 'read only'
    assert g.tick(0.0) == {}


def test_latched_outputs_stay_leased_ones_do_not() -> None:
    g = gate(lamp=OutputRule(latched=True), heater=OutputRule())
    assert write(g, 0.0) == {'heater': 0.0}  # the lamp is left as an earlier process set it
    assert g.offer('lamp', 1.0, 0.0, 'a', 1, 0.0, 0.0) == ''
    assert g.offer('heater', 1.0, 5.0, 'a', 1, 0.0, 0.0) == ''
    write(g, 0.0)
    g.stop()
    assert write(g, 1.0) == {'heater': 0.0}
    g.start()
    assert g.offer('lamp', 0.0, 0.0, 'b', 1, 2.0, 2.0) == ''
    assert write(g, 2.0)['lamp'] == 0.0


def test_what_somebody_else_changed_is_written_again() -> None:
    g = gate()
    g.offer('relay', 1.0, 100.0, 'a', 1, 0.0, 0.0)
    write(g, 0.0)
    g.reading({'relay': nan})
    assert write(g, 1.0) == {}
    g.reading({'relay': 0.0})
    assert write(g, 2.0) == {'relay': 1.0}


@given(st.lists(st.tuples(
    st.sampled_from(['offer', 'tick', 'start', 'stop', 'reading']), st.floats(0.0, 3.0), st.sampled_from('ab'),
    st.sampled_from([0.0, 1.0, nan, 2.0]), st.floats(0.0, 10.0)), max_size=60))
@settings(max_examples=300)
def test_never_on_without_a_live_lease(steps: list[tuple]) -> None:
    g = OutputGate({'relay': OutputRule()})
    now, sequence, shown, last = 0.0, 0, 0.0, -inf
    for what, wait, source, value, lease in steps:
        now += wait
        if what == 'offer':
            sequence += 1
            if not g.offer('relay', value, lease, source, sequence, now, now):
                last = now + lease if value == 1.0 else -inf
        elif what in ('start', 'stop'):
            getattr(g, what)()
            last = -inf if what == 'stop' else last
        elif what == 'reading':
            g.reading({'relay': shown})
        for name, given_value in g.tick(now).items():
            assert not isnan(given_value)
            g.written(name, given_value, now)
            shown = given_value
        if shown == 1.0:
            assert now < last
