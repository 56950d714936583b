"""Words of the care page: climate, tests, events, system, parameters."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

from bess_telemetry import care_words as said

ZONE = {'quality': 0, 'temperature_min': 4.04, 'temperature_max': 21.26, 'humidity': nan, 'fan': nan, 'heater': 1.0,
        'heater_board': 0.5, 'charge_allowed': True, 'discharge_allowed': True, 'forced': '', 'reason': ''}
STATE = {'state': 1, 'id': 3, 'by': 'eva', 'elapsed': 4.4, 'total': 10.0, 'asked': nan, 'granted': nan,
         'measured': nan, 'message': 'runs', 'battery': 'house'}
STEP = {'text': 'hold:500:2', 'result': 'ok', 'settling': 0.52, 'overshoot': 0.031, 'follow_error': 12.4, 'reason': ''}
PARAMETER = {'name': 'nodes.a.b', 'value': '5', 'unit': 'W', 'revision': 0, 'changed': 0.0, 'changed_by': '',
             'comment': '', 'description': 'what it is', 'allowed': '0 to 10 W', 'pending': False}


@pytest.mark.parametrize('unknown', [nan, 0.0, -1.0])
def test_an_unknown_moment_is_no_date(unknown: float) -> None:
    assert said.moment(unknown) == '-'
    assert '2027' in said.moment(1.8e9)


def test_a_zone() -> None:
    assert said.zone_line(ZONE) == '4.0 to 21.3 °C, heater 100%, heater board 50%'
    assert said.zone_line({**ZONE, 'humidity': 0.456}).startswith('4.0 to 21.3 °C, 46% humidity, ')
    for quality in ('invalid', 2):
        assert said.zone_line({**ZONE, 'quality': quality}).startswith('temperature unknown, ')
    assert said.zone_reason(ZONE) == ''
    barred = {**ZONE, 'charge_allowed': False, 'forced': 'fan=1', 'reason': 'cold'}
    assert said.zone_reason(barred) == 'no charging; forced: fan=1; cold'
    assert said.zone_reason({**barred, 'discharge_allowed': False}).startswith('no charging and no discharging; ')


def test_the_steps_of_a_form() -> None:
    assert said.test_steps('hold', 500, 2) == ['hold:500:2']
    assert said.test_steps('step', '-500', 2.5) == ['hold:-500:2.5', 'hold:0:2.5']
    assert said.test_steps('ramp', 1e3, 2) == ['ramp:1000:2', 'ramp:0:2']
    assert said.test_steps('transitions', None, None)[0] == 'stop'
    for power, length in ((None, 2), (500, None), (nan, 2), (inf, 2), (500, 0), (500, -1), (500, nan), (500, 1e5),
                          ('x', 2)):
        with pytest.raises(ValueError, match=r'.+'):
            said.test_steps('hold', power, length)


def test_the_line_of_a_test() -> None:
    assert said.test_line({**STATE, 'state': 0}) == 'no test yet; battery: house'
    running = said.test_line(STATE)
    assert running.startswith('test 3 by eva: 4 of 10 s, asked ') and 'nan' not in running
    assert said.test_line({**STATE, 'state': 2}) == 'test 3 by eva done'
    assert said.test_line({**STATE, 'state': 3, 'message': 'stopped'}) == 'test 3 by eva aborted: stopped'


@pytest.mark.parametrize(('change', 'text'), [
    ({}, 'hold:500:2: ok, settled in 0.5 s, overshoot 3.1%, follow error 12 W'),
    ({'result': '', 'settling': nan, 'overshoot': nan, 'follow_error': nan}, 'hold:500:2: waits'),
    ({'result': 'failed', 'settling': nan, 'overshoot': nan, 'follow_error': nan, 'reason': 'full'},
     'hold:500:2: failed (full)')])
def test_a_step_with_its_response(change: dict[str, Any], text: str) -> None:
    assert said.test_step({**STEP, **change}) == text


def test_an_event() -> None:
    event = {'time': nan, 'severity': 9, 'kind': 'state', 'source': 'site', 'name': 'RUN', 'change': 'entered',
             'text': 'start'}
    assert said.event_head(event) == '- · critical · state · site'
    assert said.event_head({**event, 'severity': 1}).split(' · ')[1] == 'warning'
    assert said.event_text(event) == 'RUN entered: start'
    assert said.event_text({**event, 'text': ''}) == 'RUN entered'
    assert said.event_text({**event, 'name': '', 'change': ''}) == 'start'


def test_system_information_says_what_it_does_not_know() -> None:
    info: dict[str, Any] = {
        'version': '1', 'serial': '', 'boot': nan, 'started': 0.0, 'starts': 3, 'state': '', 'last_state_change': 0.0,
        'mode': '', 'last_mode_change': 0.0, 'runtime': 60.0, 'sleep_time': 0.0, 'soc': nan, 'soh': 0.985,
        'last_full_charge': 0.0, 'last_empty': 0.0, 'features': [], 'balance_spread': []}
    lines = said.info_lines(info)
    assert lines[0] == 'version 1' and 'state unknown since -' in lines and 'mode none, last change -' in lines
    assert not [line for line in lines if 'nan' in line]
    assert any(line.endswith('health 98.5%') for line in lines)
    more = said.info_lines({**info, 'serial': 'S1', 'features': ['a=on', 'b=off'],
                            'balance_spread': [0.001 * n for n in range(1, 11)]})
    assert more[0] == 'version 1, serial S1' and 'features: a=on, b=off' in more
    assert more[-1] == 'cell spread of the last days: 4, 5, 6, 7, 8, 9, 10 mV', 'the last week'


def test_a_parameter_and_its_history() -> None:
    assert said.parameter(PARAMETER, False) == ('nodes.a.b = 5 W', 'what it is; allowed: 0 to 10 W')
    changed = {**PARAMETER, 'revision': 2, 'changed': nan, 'changed_by': 'eva', 'comment': 'why', 'pending': True}
    assert said.parameter(changed, False)[1].endswith('; revision 2; takes effect at the next start')
    assert said.parameter(changed, True) == ('nodes.a.b = 5 W', 'revision 2, - by eva: why')
    assert said.parameter({**changed, 'value': '', 'comment': ''}, True) == (
        'nodes.a.b = as in the site file', 'revision 2, - by eva')
