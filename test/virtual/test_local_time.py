"""Daylight saving: schedules given in local time, their journal, and statements per day of 23, 24 and 25 hours."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from datetime import datetime
from math import fsum, nan
from pathlib import Path
from typing import Any

import pytest
from test_statements import Source, check_records

from bess.srv import EnergyStatement
from bess_core.cli import partition as command
from bess_core.cli import partition_periods as periods
from bess_core.cli import schedule as schedule_command
from bess_core.cli import words
from bess_core.convert import wall_stamp
from bess_virtual.journal import Journal, added
from bess_virtual.partition import Partition
from bess_virtual.partition_answers_node import energy_statement
from bess_virtual.partition_store import RecordFiles
from bess_virtual.schedule import Request, Schedule
from bess_virtual.shares import Share

NIGHTS = {'2026-03-28': 7.0, '2026-10-24': 9.0, '2026-05-01': 8.0}  # 22:00 to 06:00, hours
DAYS = {'2026-03-29': 23, '2026-10-25': 25, '2026-05-01': 24}


@pytest.fixture
def zone(central_europe: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets the local time zone of this process."""
    def use(name: str) -> None:
        monkeypatch.setenv('TZ', name)
        time.tzset()

    yield use


def asked(now: float, start: str, end: str) -> tuple[float, float]:
    args = argparse.Namespace(power='1kW', current=None, start=start, end=end, length=None)
    _, begin, finish = schedule_command._request(args, now)
    return begin, finish


@pytest.mark.parametrize('day', NIGHTS)
def test_a_night_in_local_time_is_the_same_night_after_a_restart_in_another_zone(
        day: str, zone: Any, tmp_path: Path) -> None:
    """What runs at each quarter of an hour is told by the clock on the wall, also from the journal."""
    noon = words.moment(f'{day}T12:00', 0.0)
    start, end = asked(noon, '22:00', '06:00')
    assert (end - start) / 3600.0 == NIGHTS[day]
    inner = asked(noon, f'{day}T23:30', '+13h')
    journal = Journal(tmp_path / 'a.jsonl')
    schedule = Schedule()
    for begin, finish, value in ((start, end, 1000.0), (*inner, -500.0)):
        made = schedule.make(value, begin, finish, now=noon, is_power=True)
        assert isinstance(made, Request)
        journal.append(added(made))
        schedule.insert(made)
    journal.close()
    zone('EST5EDT,M3.2.0,M11.1.0')  # the machine is moved, or its zone is put right
    again = Journal(tmp_path / 'a.jsonl')
    kept = Schedule(again.content.requests.values(), again.content.next_id)
    again.close()
    zone('CET-1CEST,M3.5.0,M10.5.0/3')
    for k in range(24 * 4):
        at = noon + 900.0 * k
        local = datetime.fromtimestamp(at)  # noqa: DTZ006 - the clock on the wall
        night = local.hour >= 22 or local.hour < 6
        wanted = -500.0 if inner[0] <= at < noon + 13 * 3600.0 else 1000.0 if night and at < noon + 86400.0 else None
        runs = kept.at(at)
        assert (runs.value if runs else None) == wanted, local
        assert runs == schedule.at(at)


@pytest.mark.parametrize(('day', 'hours'), DAYS.items())
def test_statements_per_day_have_23_24_or_25_hours_and_lose_nothing(
        day: str, hours: int, zone: Any, tmp_path: Path) -> None:
    midnight = words.moment(day, 0.0)
    source = Source(Partition({'a': Share.equal(0.75), 'b': Share.equal(0.25)}), wall=midnight - 86400.0)
    while source.wall < midnight + 3 * 86400.0:
        source.run({'a': 1000.0 if source.wall % 7200.0 < 3600.0 else -900.0, 'b': 60.0}, 900.0)
    records = source.close()
    check_records(records)
    files = RecordFiles(tmp_path)
    for record in records:
        files.append(record)
    answer = energy_statement(EnergyStatement.Request(
        start=wall_stamp(words.moment(day, 0.0)), end=wall_stamp(_next_midnight(midnight)), price=0.3, currency='EUR'),
        files, [], lambda _: None)
    assert answer.accepted, answer.message
    assert len(answer.records) == hours * 4 * 3, 'quarter hours of a, b and the source'
    whole = energy_statement(EnergyStatement.Request(price=0.3, currency='EUR'), files, [], lambda _: None).records
    added_up = periods.add_up(whole, 'day')
    of_day = [p for p in added_up if command.local(p.start).startswith(day)]
    assert [p.child for p in of_day] == ['a', 'b', '']
    for period in of_day:
        assert period.end.sec - period.start.sec == hours * 3600
        mine = [r for r in answer.records if r.child == period.child]
        for name in periods.SUMMED:
            assert getattr(period, name) == pytest.approx(fsum(getattr(r, name) for r in mine), abs=1e-9)
        assert (period.stored, period.price, period.final, period.gap) == (mine[-1].stored, 0.3, True, False)
    a, b, all_of_it = of_day
    assert a.energy_in + b.energy_in == pytest.approx(all_of_it.energy_in, abs=1e-9)
    rows = [command.row(p, 'EUR', command.local) for p in of_day]
    assert rows[0]['start'].startswith(f'{day}T00:00:00+0') and rows[0]['end'][11:19] == '00:00:00'
    if hours != 24:
        assert rows[0]['start'][-6:] != rows[0]['end'][-6:], 'the offset says why it is not 24 h'
    for unit in periods.UNITS:
        for name in periods.SUMMED:
            assert fsum(getattr(p, name) for p in periods.add_up(whole, unit)) == pytest.approx(
                fsum(getattr(r, name) for r in whole), abs=1e-6), (unit, name)
    assert len([p for p in periods.add_up(answer.records, 'hour') if not p.child]) == hours, 'both hours 2 count'


def test_a_period_says_what_is_not_whole_in_it(zone: Any) -> None:
    from bess.msg import EnergyRecord

    records = [EnergyRecord(child='a', start=wall_stamp(1.8e9 + 900 * k), end=wall_stamp(1.8e9 + 900 * k + 900),
                            energy_in=1.0, counted=k != 1, gap=k == 0, final=k != 2, price=0.1 * k, cost=0.1)
               for k in range(3)]
    (period,) = periods.add_up(records, 'year')
    assert (period.counted, period.gap, period.final, period.energy_in) == (False, True, False, 3.0)
    assert period.price != period.price and period.cost == pytest.approx(0.3)
    (period,) = periods.add_up([EnergyRecord(cost=nan, price=nan, final=True)], 'month')
    assert period.cost != period.cost
    assert periods.add_up([], 'day') == []


def _next_midnight(midnight: float) -> float:
    day = datetime.fromtimestamp(midnight + 36 * 3600.0)  # noqa: DTZ006 - noon of the next day or near it
    return day.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
