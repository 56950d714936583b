"""`bess device`: the commissioning test of one device of a running site, and how its wire does."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from math import nan
from typing import Any

from .device_checks import CHECKS, FAIL, OK, SKIP, Finding, effect, followed, fresh, moves
from .session import CliError, Session, add_command, add_json, add_site, open_session, print_json, seconds

EXAMPLES = """
  bess device show meter                                   requests, errors by kind, round trips, age of each point
  bess device check meter                                  are the readings plausible?
  bess device check inverter_a --power 300                 does it follow 300 W, in both directions?
  bess device check inverter_a --power 300 --battery bms_a --meter meter
The site must run, and nobody else may command the converter (`bess mode none`). With --power the
converter charges, then discharges, with so many W for --hold each, on leases of 2 s: when this
command is interrupted it goes back to zero by itself. The exit code is 1 when something failed.
"""
SOURCE = 'commissioning'
LEASE_S, RENEW_S = 2.0, 0.5
MESSAGES = ('MeterStatus', 'BatteryStatus', 'InverterStatus', 'IoStatus', 'ClimateStatus')
MOVING = {'MeterStatus': ('active_power', 'voltage', 'frequency'), 'BatteryStatus': ('voltage', 'current', 'soc'),
          'InverterStatus': ('active_power', 'voltage', 'frequency', 'dc_voltage')}


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'device', 'test a device', __doc__, EXAMPLES, run)
    parser.add_argument('action', choices=['check', 'show'], help='test it; or show its counters')
    parser.add_argument('name', metavar='NAME', help='node of the device, e.g. meter')
    parser.add_argument('--for', dest='seconds', type=seconds, default=3.0, metavar='S',
                        help='how long to watch, s (default: %(default)g)')
    parser.add_argument('--power', type=float, default=0.0, metavar='W',
                        help='converters: order so many W in both directions (default: no order)')
    parser.add_argument('--hold', type=seconds, default=4.0, metavar='S',
                        help='how long each order holds, s (default: %(default)g)')
    parser.add_argument('--tolerance', type=float, default=0.0, metavar='W',
                        help='deviation that counts as followed (default: a fifth of the power, at least 50 W)')
    parser.add_argument('--battery', default='', metavar='NAME',
                        help='battery behind the converter: its sign is checked')
    parser.add_argument('--meter', default='', metavar='NAME', help='meter in front of it: its sign is checked')
    add_site(parser)
    add_json(parser, 'the findings as a JSON list')


class Watch:
    """The status messages of one device."""

    def __init__(self, session: Session, name: str) -> None:
        from bess_core import qos

        self.name, self.statuses = name, []  # type: tuple[str, list[Any]]
        topic = f'{name}/status'
        self.kind = _kind(session, topic)
        self.last: Any = None
        self.times: list[float] = []
        session.node.create_subscription(self.kind, topic, self._take, qos.MEASUREMENT)

    def _take(self, message: Any) -> None:
        self.last = message
        self.statuses.append(message)
        self.times.append(time.monotonic())

    def mean(self, seconds: float) -> float:
        """Mean power of the last seconds, W; NaN unknown."""
        since = time.monotonic() - seconds
        recent = [m for t, m in zip(self.times, self.statuses, strict=True) if t >= since] or self.statuses[-1:]
        values = [float(getattr(m, 'active_power', getattr(m, 'power', nan))) for m in recent]
        return sum(values) / len(values) if values else nan

    def power(self) -> float:
        """Last measured power, W; NaN unknown."""
        if self.last is None:
            return nan
        return float(getattr(self.last, 'active_power', getattr(self.last, 'power', nan)))


def _kind(session: Session, topic: str) -> Any:
    """Message class of a status topic."""
    import bess.msg

    found: dict[str, list[str]] = {}

    def look() -> bool:
        found.update(dict(session.node.get_topic_names_and_types()))
        return topic in found and bool(session.node.count_publishers(topic))

    if not session.until(look):
        names = sorted(n.removesuffix('/status') for n in found if n.endswith('/status'))
        raise CliError(f'no device {topic.removesuffix("/status")}; there is: {", ".join(names) or "none"}')
    kind = found[topic][0].rsplit('/', 1)[-1]
    if kind not in MESSAGES:
        raise CliError(f'{topic} is a {kind}, not the status of a device')
    return getattr(bess.msg, kind)


def run(args: argparse.Namespace) -> int:
    """0; 1 when something failed."""
    findings: list[Finding] = []

    def say(*found: Finding) -> None:
        for f in found:
            findings.append(f)
            if not args.json:
                print(f'{f.level:<4}  {f.name:<22}  {f.text}', flush=True)

    with open_session(args.timeout) as session:
        if args.action == 'show':
            return _show(session, session.full_name(args.name, args.site), args.json)
        device = Watch(session, session.full_name(args.name, args.site))
        others = {what: Watch(session, session.full_name(name, args.site))
                  for what, name in (('battery', args.battery), ('meter', args.meter)) if name}
        look(session, device, args.seconds, say)
        if args.power and device.kind.__name__ != 'InverterStatus':
            raise CliError('--power is for converters', 2)
        if args.power:
            _steps(session, device, others, args, say)
    failed = sum(f.level == FAIL for f in findings)
    if args.json:
        print_json([{'level': f.level, 'name': f.name, 'text': f.text} for f in findings])
    else:
        skipped = sum(f.level == SKIP for f in findings)
        print(f'{len(findings)} checks: {failed} failed, {skipped} could not be made')
    return 1 if failed else 0


def _show(session: Session, name: str, as_json: bool) -> int:
    """The diagnostics of the driver, once they come. Raises `CliError` when there are none."""
    from diagnostic_msgs.msg import DiagnosticArray

    from bess_core import qos

    found: dict[str, dict[str, str]] = {}

    def take(message: Any) -> None:
        found.update({s.name.partition(':')[0]: {v.key: v.value for v in s.values} for s in message.status})

    session.node.create_subscription(DiagnosticArray, '/diagnostics', take, qos.DIAGNOSTICS)
    if not session.until(lambda: name in found):
        raise CliError(f'no diagnostics of {name}; heard: {", ".join(sorted(found)) or "none"}')
    if 'address' not in found[name]:
        raise CliError(f'{name} is no driver of a device')
    if as_json:
        print_json(found[name])
    else:
        width = max(map(len, found[name]))
        for key, value in found[name].items():
            print(f'{key:<{width}}  {value}')
    return 0


def look(session: Session, device: Watch, wait: float, say: Callable[..., None]) -> None:
    """Watch a device for so many seconds and say the findings."""
    session.until(lambda: device.last is not None)
    device.statuses.clear()
    device.times.clear()
    session.until(lambda: False, wait)
    kind = device.kind.__name__
    say(fresh(device.statuses, wait))
    if not device.statuses:
        return
    if kind in MOVING:
        say(moves(device.statuses, MOVING[kind]))
    if kind in CHECKS:
        say(*CHECKS[kind](device.statuses[-1]))
    for alarm in list(getattr(device.statuses[-1], 'alarms', [])):
        say(Finding(FAIL, 'alarm', str(alarm)))


def orders(session: Session, converter: str) -> Callable[[float, float], None]:
    """`hold(power, seconds)`: keeps a power (W, + = charging) at a converter (its full name) for so long.

    On leases of `LEASE_S`, so that it ends with this process. Raises `CliError` when nobody takes setpoints there.
    """
    from bess.msg import PowerSetpoint
    from bess_core import qos
    from bess_core.convert import wall_stamp

    publisher = session.node.create_publisher(PowerSetpoint, f'{converter}/setpoint', qos.SETPOINT)
    if not session.until(lambda: publisher.get_subscription_count() > 0):
        raise CliError(f'{converter} takes no setpoints')
    sequence = time.time_ns()  # above that of an earlier run whose lease may still last

    def hold(power: float, wait: float) -> None:
        nonlocal sequence
        end = time.monotonic() + wait
        while time.monotonic() < end:
            sequence += 1
            order = PowerSetpoint(power=power, reactive_power=nan, lease=LEASE_S, source=SOURCE, sequence=sequence)
            order.header.stamp = wall_stamp(time.time())
            publisher.publish(order)
            session.until(lambda: False, min(RENEW_S, max(end - time.monotonic(), 0.01)))

    return hold


def _steps(session: Session, device: Watch, others: dict[str, Watch], args: argparse.Namespace,
           say: Callable[..., None]) -> None:
    """Charge, discharge, zero."""
    power = abs(args.power)
    tolerance = args.tolerance or max(0.2 * power, 50.0)
    hold = orders(session, device.name)
    hold(0.0, max(args.hold / 2, 1.0))
    holder = device.last.setpoint_source if device.last is not None else ''
    if holder != SOURCE:
        why = (f'{holder} holds it; `bess mode none` lets it go' if holder
               else 'is the driver active, and not read_only? see `bess faults`')
        say(Finding(FAIL, 'orders accepted', why))
        return
    say(Finding(OK, 'orders accepted', f'lease of {LEASE_S:g} s'))
    before = {what: w.power() for what, w in others.items()}
    for asked in (power, -power):
        hold(asked, args.hold)
        limits = '; '.join(device.last.limit_reasons)
        result = followed(asked, device.last.active_power, tolerance)
        say(Finding(result.level, result.name, result.text + (f' ({limits})' if limits else '')))
        for what, watch in others.items():
            say(effect(what, before[what], watch.power(), asked))
    hold(0.0, args.hold)
    say(followed(0.0, device.last.active_power, tolerance))
