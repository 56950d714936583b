"""Wire format, rights, and requests of remote batteries without a wire."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf, isnan, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bess.msg import BatteryStatus
from bess.srv import Reserve, ScheduleSetPower
from bess_virtual.remote_access import OPS, Access, Bucket, Remembered, lateness
from bess_virtual.remote_requests import Outbox, OwnerTime, Pending
from bess_virtual.remote_wire import (
    MAX_BYTES,
    Answer,
    Ask,
    WireError,
    decode_answer,
    decode_ask,
    encode,
    fields_of,
    message_of,
)

floats = st.floats(allow_nan=False)
texts = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=60)


@given(floats, floats, texts, st.integers(0, 2**64 - 1), st.lists(texts, max_size=4))
def test_messages_come_over_bit_by_bit(power: float, soc: float, source: str, members: int, reasons: list[str]) -> None:
    message = BatteryStatus(power=power, soc=soc, setpoint_source=source, members=members, limit_reasons=reasons)
    message.voltage = nan
    message.header.stamp.sec, message.header.stamp.nanosec = -5, 999_999_999
    body = decode_answer(encode(Answer('b', 1.5, 2.5, {'status': fields_of(message)}))).body['status']
    back = message_of(BatteryStatus, body)
    assert isnan(back.voltage)
    back.voltage = message.voltage = 0.0
    assert fields_of(back) == fields_of(message)
    assert (back.power, back.soc) == (power, soc)


def test_sequences_and_infinity() -> None:
    request = Reserve.Request(times=[1.0, 2.5], powers=[inf], owner='x', hold=3)
    back = message_of(Reserve.Request, json.loads(json.dumps(fields_of(request))))
    assert back == request


def test_other_releases_understand_each_other() -> None:
    body = fields_of(BatteryStatus(power=5.0))
    body['a_field_of_tomorrow'] = {'x': [1]}
    del body['soc']
    assert message_of(BatteryStatus, body).power == 5.0


@given(st.binary(max_size=300))
def test_any_bytes_are_an_envelope_or_an_error(data: bytes) -> None:
    for decode in (decode_ask, decode_answer):
        try:
            decode(data)
        except WireError:
            pass


@given(st.integers(0, 400), st.binary(min_size=1, max_size=3))
def test_cut_or_damaged_envelopes(at: int, junk: bytes) -> None:
    good = encode(Ask('house', 'id', 'boot', 1.0, 2.0, {'power': 5.0, 'start': {'sec': 1}}))
    for data in (good[:at], good[:at] + junk + good[at + 1:]):
        try:
            ask = decode_ask(data)
            message_of(ScheduleSetPower.Request, ask.body)
        except WireError:
            pass


odd = st.sampled_from([None, True, 0, -1, 10**30, 1.5, 'inf', 'x', '', [], [1], {}, {'sec': 1}, {'sec': None},
                       {'nanosec': 5}, {'nanosec': 2**32}, [[{}]], {'sec': {'sec': 1}}])


@given(st.dictionaries(st.sampled_from(['power', 'start', 'end', 'strict', 'request_id']), odd))
def test_any_body_is_a_message_or_an_error(body: dict[str, Any]) -> None:
    try:
        message_of(ScheduleSetPower.Request, body)
    except WireError:
        pass


@pytest.mark.parametrize('data', [
    b'[' * 100_000, b'x' * (MAX_BYTES + 1), b'{"v":1,"given":NaN}', b'{"v":1,"given":' + b'9' * 5000 + b'}',
    b'{"v":true}', b'{"v":1,"given":1e999}',
    b'{"v":1,"battery":"\\ud800"}', b'{"v":1,"id":"\\u0000"}', b'{"v":1,"body":[]}',
    b'{"v":2}', b'{"v":1,"id":"' + b'a' * 129 + b'"}'])
def test_hostile_envelopes(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_ask(data)


@pytest.mark.parametrize('body', [
    {'power': True}, {'power': '1'}, {'strict': 1}, {'start': 5}, {'start': {'sec': 2**31}}, {'start': {'nanosec': -1}},
    {'start': {'nanosec': 10**9}}, {'request_id': 'x' * 5000}, {'request_id': '\ud800'}, {'power': 10**400}])
def test_values_that_do_not_fit_their_field(body: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        message_of(ScheduleSetPower.Request, body)


def test_an_answer_that_is_too_large_is_not_sent() -> None:
    with pytest.raises(WireError):
        encode(Answer(body={'x': 'a' * MAX_BYTES}))


# -- rights ------------------------------------------------------------------------------------------


@given(st.sampled_from(['alice', 'bob', 'eve']), st.sampled_from(['house', 'cellar', '*', '']),
       st.sampled_from([*OPS, 'drop_tables', '']))
def test_only_what_is_listed_is_allowed(client: str, battery: str, op: str) -> None:
    access = Access({'alice': {'house': ['read', 'setpoint']}, 'bob': {'cellar': ['schedule']}}, ['house', 'cellar'])
    allowed = {('alice', 'house'): {'read', 'setpoint'}, ('bob', 'cellar'): {'schedule'}}.get((client, battery), set())
    assert (access.refusal(client, battery, op) == '') == (op in OPS and OPS[op] in allowed)


def test_orders_have_a_deadline_on_the_owners_clock() -> None:
    assert lateness(100.0, 99.0, 2.0) == ''
    assert 'arrived 3.0 s old' in lateness(102.0, 99.0, 2.0)
    for given_at, within in ((nan, 1.0), (99.0, nan), (99.0, 0.0), (99.0, -1.0), (99.0, inf), (99.0, 4000.0)):
        assert lateness(100.0, given_at, within)


def test_the_rate_of_questions_is_held() -> None:
    bucket = Bucket(10.0, 5.0)
    assert sum(bucket.take(100.0) for _ in range(50)) == 5
    assert 95 <= sum(bucket.take(200.0 + k / 100.0) for k in range(1000)) <= 105


def test_a_request_is_remembered_until_too_many_followed() -> None:
    memory = Remembered(3)
    memory.put('a', 'q', 1)
    assert memory.get('a', 'q') == (1, '')
    assert memory.get('a', 'other')[1] == 'another request had the same id'
    memory.withdraw('a')
    assert 'withdrawn' in memory.get('a', 'q')[1]
    for k in 'bcde':
        memory.put(k, 'q', k)
    assert memory.get('b', 'q') == (None, '') and memory.get('e', 'q') == ('e', '')


# -- requests ----------------------------------------------------------------------------------------


def pending(done: list[Any], i: str = 'a', op: str = 'schedule_set_power') -> Pending:
    return Pending(i, op, {}, 0.0, 5.0, lambda body, why: done.append((body, why)))


def test_a_request_is_sent_again_until_it_is_answered_or_too_late() -> None:
    done: list[Any] = []
    box = Outbox()
    request = pending(done)
    other = replace(pending(done), body={'power': 2.0})
    assert box.add(request) == '' and 'on its way' in box.add(other)
    now = 0.0
    times = []
    while not done:
        for due in box.due(now):
            times.append(now)
            box.sent(due)
            box.failed(due, now, 'no answer')
        now += 0.05
        box.expire(now)
    assert now >= 5.0 and len(times) >= 6 and all(b - a <= 1.1 for a, b in zip(times, times[1:], strict=False))
    assert done[0][0] is None and 'withdrawn as soon as' in done[0][1]
    assert box.to_withdraw == ['a'] and box.changed
    box.answered(request, {'accepted': True}, '')  # too late: it was told otherwise
    assert len(done) == 1
    assert box.add(pending(done)) == '' and box.to_withdraw == []  # asked again after all
    box.answered(next(iter(box.due(6.0)), request), {}, '')


@pytest.mark.parametrize(('tries', 'withdrawn'), [(1, []), (2, ['a'])])
def test_a_refusal_says_nothing_of_an_earlier_try(tries: int, withdrawn: list[str]) -> None:
    done: list[Any] = []
    box = Outbox()
    request = pending(done)
    box.add(request)
    for k in range(tries):
        box.sent(request)
        if k < tries - 1:
            box.failed(request, 0.0, 'no answer')
    box.answered(request, None, 'not offered at present')
    assert done == [(None, 'not offered at present')] and box.to_withdraw == withdrawn


def test_what_was_never_sent_needs_no_withdrawal() -> None:
    done: list[Any] = []
    box = Outbox(['old'])
    box.add(pending(done))
    box.expire(5.0)
    assert done[0][1] == 'given up after 5 s (no answer)' and box.to_withdraw == ['old']
    box.withdrawn(['old', 'unknown'])
    assert box.to_withdraw == []


def test_who_asks_again_gets_the_answer_of_the_first() -> None:
    first: list[Any] = []
    second: list[Any] = []
    box = Outbox()
    assert box.add(pending(first)) == '' and box.add(pending(second)) == '' and len(box) == 1
    (request,) = box.due(0.0)
    box.sent(request)
    box.answered(request, {'accepted': True}, '')
    assert first == second == [({'accepted': True}, '')] and len(box) == 0


def test_why_nothing_could_be_sent_is_said() -> None:
    done: list[Any] = []
    box = Outbox()
    box.add(pending(done))
    box.expire(5.0, 'permission denied')
    assert done == [(None, 'given up after 5 s (permission denied)')]


def test_requests_are_bounded() -> None:
    done: list[Any] = []
    box = Outbox(limit=2)
    assert [bool(box.add(pending(done, i))) for i in 'abc'] == [False, False, True]


@given(st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.floats(-1e6, 1e6), st.floats(0.0, 100.0))
def test_the_owners_time_never_looks_later_than_it_is(there: float, back: float, ahead: float, later: float) -> None:
    """Orders that wait on the way look older at the owner, never younger, whatever the clocks say."""
    owner = OwnerTime()
    sent = 50.0
    owner.learn('boot', sent + there + ahead, 1.8e9 + sent + there + 7.0, sent, sent + there + back,
                1.8e9 + sent + there + back)
    now = sent + there + back + later
    assert owner.now(now) <= now + ahead + 1e-6
    assert abs(owner.offset - 7.0) <= owner.uncertainty + 1e-6
