"""`bess test`: manual setpoints, steps, ramps and transitions on a running site, with the measured response."""

from __future__ import annotations

import argparse
import csv
import getpass
import sys
import time
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

from .session import (
    CliError,
    Session,
    accepted,
    add_command,
    add_json,
    add_site,
    open_session,
    print_json,
    seconds,
    text_table,
)

EXAMPLES = """
  bess test hold 1000 --for 20              charge with 1 kW for 20 s, then give the battery back
  bess test step 0 1000 -1000 0             one step after the other, --for 10 s each
  bess test ramp 2000 -2000 --for 30        to 2 kW in 30 s, then to -2 kW in 30 s
  bess test transitions                     stop, start, maintenance, release and start, with their times
  bess test run start mode:none hold:500:10 ramp:0:5 mode:self_consumption
  bess test status | stop | report          --csv FILE keeps the samples of a report or a test
Powers in W, + = charging. The test controller proposes like a mode does: limits, the state of the site and the
emergency stop go before it, and what they do not allow is refused. Ctrl-C, or the end of this command by any
other cause, ends the test and gives the battery back. The exit code is 1 when a step was not followed.
"""
ALIVE_S, RENEW_S = 3.0, 0.5
LONGEST_S = 86400.0
CYCLE = ('stop', 'start', 'maintenance', 'release', 'start')
STATES = ('idle', 'running', 'done', 'aborted')
RUNNING, DONE = 1, 2


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'test', 'setpoints, steps, ramps, transitions by hand', __doc__, EXAMPLES, run)
    parser.add_argument('what', choices=['hold', 'step', 'ramp', 'transitions', 'run', 'status', 'stop', 'report'])
    parser.add_argument('values', nargs='*', metavar='W | STEP',
                        help='powers (hold, step, ramp); steps (run): hold:W:S, ramp:W:S, mode:NAME, start, stop, '
                        'maintenance, release')
    parser.add_argument('--for', dest='seconds', type=seconds, default=10.0, metavar='S',
                        help='length of each step, s (default: %(default)g)')
    parser.add_argument('--by', default='', help='who (default: the user)')
    parser.add_argument('--csv', type=Path, default=None, metavar='FILE', help='write the samples to a file')
    parser.add_argument('--no-plot', action='store_true', help='no picture of the response')
    parser.add_argument('--node', default='test', help='name of the test controller (default: %(default)s)')
    add_site(parser)
    add_json(parser, 'the report as JSON')


def steps_of(what: str, values: Sequence[str], length: float) -> list[str]:
    """The steps of a sequence. Raises `CliError` for words that make none."""
    if what == 'run':
        if not values:
            raise CliError('run needs steps, e.g. hold:500:10', 2)
        return list(values)
    if what == 'transitions':
        if values:
            raise CliError('transitions takes no values; `bess test run` does', 2)
        return list(CYCLE)
    try:
        powers = [float(v) for v in values]
    except ValueError:
        raise CliError(f'{" ".join(values)!r} are not powers in W', 2) from None
    if not powers or (what == 'hold' and len(powers) != 1):
        raise CliError(f'{what} needs {"one power" if what == "hold" else "powers"} in W', 2)
    return [f'{"ramp" if what == "ramp" else "hold"}:{p:g}:{length:g}' for p in powers]


def run(args: argparse.Namespace) -> int:
    """0; 1 when refused, aborted or not followed; 2 for words that make no sense."""
    orders = what = None
    if args.what in ('status', 'stop', 'report'):
        what = args.what
    else:
        orders = steps_of(args.what, args.values, args.seconds)
    with open_session(args.timeout) as session:
        node = session.full_name(args.node, args.site)
        if what == 'stop':
            return _stop(session, node, args)
        if orders is not None:
            _run(session, node, orders, args)
        report = _report(session, node)
    return _show(report, args)


def _stop(session: Session, node: str, args: argparse.Namespace) -> int:
    from std_srvs.srv import Trigger

    answer = session.call(f'{node}/stop', Trigger, Trigger.Request())
    values = {'node': node, 'accepted': answer.success, 'message': answer.message}
    return accepted(answer.success, answer.message, json_values=values if args.json else None)


def _report(session: Session, node: str) -> Any:
    from bess.srv import GetTestReport

    answer = session.call(f'{node}/report', GetTestReport, GetTestReport.Request())
    if not answer.accepted:
        raise CliError(answer.message)
    return answer


def _run(session: Session, node: str, orders: list[str], args: argparse.Namespace) -> None:
    from std_msgs.msg import UInt64
    from std_srvs.srv import Trigger

    from bess.msg import TestState
    from bess.srv import RunTest

    from .. import qos

    heard: list[Any] = []
    session.node.create_subscription(TestState, f'{node}/state', heard.append, qos.STATE)
    alive = session.node.create_publisher(UInt64, f'{node}/alive', qos.EVENT)
    answer = session.call(f'{node}/run', RunTest, RunTest.Request(
        steps=orders, by=args.by or getpass.getuser(), alive=ALIVE_S))
    if not answer.accepted:
        raise CliError(f'refused: {answer.message}')
    shown, told = -1, -1.0

    def over() -> bool:
        nonlocal shown, told
        now = time.monotonic()
        if now - told >= RENEW_S:
            told = now
            alive.publish(UInt64(data=answer.id))
        mine = [m for m in heard if m.id == answer.id]
        heard[:] = heard[-1:]
        if not mine:
            return False
        m = mine[-1]
        if m.state == RUNNING and not args.json and (m.step != shown or sys.stderr.isatty()):
            shown = m.step
            _progress(m)
        return bool(m.state != RUNNING)

    try:
        if not session.until(over, LONGEST_S):
            raise CliError('the test did not end')
    except KeyboardInterrupt:
        # The signal ended the executor of this session; without renewal the test ends by itself, too.
        session.node.create_client(Trigger, f'{node}/stop').call_async(Trigger.Request())
        print('\ninterrupted: the test ends', file=sys.stderr)
        raise
    finally:
        if sys.stderr.isatty() and not args.json:
            print(file=sys.stderr)


def _progress(m: Any) -> None:
    from .render import watts

    text = (f'{m.elapsed:5.1f} of {m.total:.0f} s  step {m.step + 1} of {len(m.steps)} ({m.steps[m.step].text})  '
            f'asked {watts(m.asked)}, granted {watts(m.granted)}, measured {watts(m.measured)}')
    if sys.stderr.isatty():
        print(f'\r{text:<110}', end='', file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def _show(report: Any, args: argparse.Namespace) -> int:
    from .render import number, plain, watts

    m = report.state
    good = m.state in (RUNNING, DONE) and all(s.result in ('', 'ok') for s in m.steps)
    if args.csv is not None:
        _write(args.csv, report)
    if args.json:
        values = plain(report)
        values['result'] = STATES[m.state]
        print_json(values)
        return 0 if good else 1
    print(f'test {m.id} of {m.battery} by {m.by}: {STATES[m.state]}' + (f' ({m.message})' if m.state != DONE else ''))
    print(text_table(['step', 'result', 'measured', 'delay', 'rise', 'settling', 'overshoot', 'follow error'], [
        [s.text, s.result or '-', watts(s.measured), number(s.delay, 's'), number(s.rise, 's'),
         number(s.settling, 's'), '-' if isnan(s.overshoot) else f'{s.overshoot:.1%}', watts(s.follow_error)]
        for s in m.steps]))
    for s in m.steps:
        if s.reason:
            print(f'  {s.text}: {s.reason}')
    if not args.no_plot and any(not isnan(v) for v in report.measured):
        print('\n'.join(plot(list(report.time), list(report.asked), list(report.measured))))
    return 0 if good else 1


def _write(path: Path, report: Any) -> None:
    try:
        with path.open('w', newline='', encoding='utf-8') as file:
            writer = csv.writer(file)
            writer.writerow(['time_s', 'asked_w', 'granted_w', 'measured_w'])
            for row in zip(report.time, report.asked, report.granted, report.measured, strict=True):
                writer.writerow(['' if isnan(v) else f'{v:.3f}' for v in row])
    except OSError as error:
        raise CliError(f'{path} cannot be written: {error.strerror or error}') from error


def plot(times: Sequence[float], asked: Sequence[float], measured: Sequence[float], width: int = 72,
         height: int = 13) -> list[str]:
    """Order (.) and measured power (*) over time as lines of text; W over s."""
    known = [v for v in (*asked, *measured) if not isnan(v)]
    if not known or not times:
        return []
    low, high = min(*known, 0.0), max(*known, 0.0)
    span, length = (high - low) or 1.0, (times[-1] - times[0]) or 1.0
    grid = [[' '] * width for _ in range(height)]
    for values, mark in ((asked, '.'), (measured, '*')):
        for t, v in zip(times, values, strict=True):
            if not isnan(v):
                level = round((high - v) / span * (height - 1))
                grid[level][round((t - times[0]) / length * (width - 1))] = mark
    zero = round(high / span * (height - 1))
    lines = []
    for i, row in enumerate(grid):
        at = high - i * span / (height - 1)
        label = f'{at:8.0f}' if i in (0, height - 1) else f'{0:8d}' if i == zero else ' ' * 8
        lines.append(f'{label} |{"".join(row).rstrip()}')
    lines.append(f'{"W":>8} +{"-" * width}')
    lines.append(f'{"":>10}0 s{f"{length:.0f} s":>{width - 3}}   . asked  * measured')
    return lines
