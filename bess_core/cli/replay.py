"""`bess replay`: publish a recording again, or tell what it holds."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path
from typing import Any

from .session import (
    CliError,
    Session,
    add_command,
    add_json,
    glob_choice,
    load_plugin,
    open_session,
    positive,
    print_json,
    seconds,
)

EXAMPLES = """
  bess replay recordings/20260501T120000Z --info
  bess replay DIR --rate 10 --prefix /replay        ten times as fast, as /replay/home/...
  bess replay DIR --topics '/home/*/status' --loop
  bess replay DIR --start 10m --for 30s
Topics that a running site publishes are refused (this is looked at for 3.5 s) without --force: use
--prefix or another ROS_DOMAIN_ID.
"""
_LOOK_S = 3.5  # discovery may take 3 s; two sources on one topic would be worse than the wait


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'replay', 'publish a recording', __doc__, EXAMPLES, run)
    parser.add_argument('bag', type=Path, metavar='DIR', help='folder of the recording')
    parser.add_argument('--info', action='store_true', help='tell what it holds and end')
    parser.add_argument('--rate', type=positive, default=1.0, metavar='X', help='times real time (default: 1)')
    parser.add_argument('--topics', nargs='+', default=[], metavar='GLOB', help='only these (default: all)')
    parser.add_argument('--start', type=seconds, default=None, metavar='S', help='begin so far into it, s')
    parser.add_argument('--for', dest='length', type=seconds, default=None, metavar='S',
                        help='play only so much recorded time, s')
    parser.add_argument('--loop', action='store_true', help='again and again, until Ctrl-C')
    parser.add_argument('--prefix', default='', metavar='NAME', help='put before every topic, e.g. /replay')
    parser.add_argument('--wait', type=seconds, default=1.0, metavar='S',
                        help='longest wait for subscribers before the first message, s (default: 1)')
    parser.add_argument('--force', action='store_true', help='also on topics that somebody publishes now')
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 when the recording cannot be read or played here."""
    read_info = load_plugin('bess.telemetry', 'info')
    try:
        bag = read_info(args.bag)
    except (ValueError, OSError) as error:
        raise CliError(str(error)) from error
    if args.info:
        return _print_info(args, bag)
    topics = glob_choice(list(bag.topics), args.topics)
    if not topics:
        raise CliError(f'{args.bag}: no such topic; it holds: {", ".join(bag.topics) or "nothing"}')
    prefix = '/' + args.prefix.strip('/') if args.prefix.strip('/') else ''
    with open_session(name='bess_replay') as session:
        if not args.force:
            _refuse_live(session, [prefix + t for t in topics])
        sent = _play(session, args, topics, prefix)
    if args.json:
        print_json({'bag': str(args.bag), 'messages': sent, 'topics': topics})
    else:
        print(f'{args.bag}: {sent} messages of {len(topics)} topics published')
    return 0


def _refuse_live(session: Session, topics: list[str]) -> None:
    """Recorded orders and measurements must not mix with those of a running site."""

    def live() -> list[str]:
        return [t for t in topics if session.node.count_publishers(t)]

    if session.until(live, _LOOK_S):
        found = live()
        more = f' and {len(found) - 3} more' if len(found) > 3 else ''
        raise CliError(f'{", ".join(found[:3])}{more}: published by somebody now; use --prefix /replay, another '
                       'ROS_DOMAIN_ID, or --force')


def _play(session: Session, args: argparse.Namespace, topics: list[str], prefix: str) -> int:
    """Replay in a thread while this one serves the executor; number of messages."""
    replay = load_plugin('bess.telemetry', 'replay')
    publishers = load_plugin('bess.telemetry', 'publishers')(session.node)
    stop, done = threading.Event(), threading.Event()
    result: list[int] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            result.append(replay(
                args.bag, publishers, rate=args.rate, topics=topics, start=args.start, duration=args.length,
                loop=args.loop, remap_prefix=prefix, stop=stop, ready=publishers.matched,
                ready_timeout=args.wait))
        except Exception as error:  # noqa: BLE001 - raised again in the main thread
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=work, name='replay')
    thread.start()
    try:
        session.until(done.is_set, 1e9)
    finally:
        stop.set()
        thread.join()
    if not errors and result[0]:
        # Reliable readers may still be fetching the last messages; they are lost with the publishers.
        session.until(lambda: False, 0.2)
    publishers.destroy()
    if errors:
        raise CliError(f'{args.bag}: {errors[0]}') from errors[0]
    return result[0]


def _print_info(args: argparse.Namespace, bag: Any) -> int:
    from .render import number, table
    from .words import local, span

    topics = glob_choice(list(bag.topics), args.topics)
    if args.json:
        print_json({'bag': str(args.bag), 'start': bag.start or None, 'duration_s': bag.duration,
                    'messages': bag.message_count, 'size_bytes': bag.size,
                    'topics': {t: {'type': bag.topics[t].msgtype, 'messages': bag.topics[t].count,
                                   'rate_hz': bag.topics[t].rate if bag.topics[t].rate == bag.topics[t].rate
                                   else None} for t in topics}})
        return 0
    print(f'{args.bag}: from {local(bag.start)} (local time), {span(bag.duration)}, {bag.message_count} messages, '
          f'{bag.size / 1e6:.2f} MB')
    print(table(['topic', 'type', 'messages', 'rate'], [
        [t, bag.topics[t].msgtype, str(bag.topics[t].count), number(bag.topics[t].rate, 'Hz', 2)]
        for t in topics]))
    return 0
