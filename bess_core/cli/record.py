"""`bess record`: record topics into a rosbag2 folder (MCAP), also while no recorder node runs."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from .session import CliError, Session, add_command, add_json, load_plugin, open_session, print_json, seconds

EXAMPLES = """
  bess record                                    everything, into ./recordings, until Ctrl-C
  bess record --for 10m --out /data/bags
  bess record --topics '/home/*/status' '/home/power_manager/*'
The folder opens with `bess replay`, ros2 bag, Foxglove and every other MCAP reader.
"""
LOOK_S = 0.5  # period of looks for new topics
SHOW_S = 1.0
MIN_FREE_MB = 50.0


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'record', 'record topics', __doc__, EXAMPLES, run)
    parser.add_argument('--out', type=Path, default=Path('recordings'), metavar='DIR',
                        help='a new recording is made in this folder (default: %(default)s)')
    parser.add_argument('--for', dest='seconds', type=seconds, default=0.0, metavar='S',
                        help='end after this time, s')
    parser.add_argument('--topics', nargs='+', default=['*'], metavar='GLOB', help='only these (default: all)')
    parser.add_argument('--exclude', nargs='+', default=[], metavar='GLOB', help='but not these')
    add_json(parser, 'the summary as JSON')


def run(args: argparse.Namespace) -> int:
    """0; 1 when nothing could be recorded or the disk refused."""
    recorder_class = load_plugin('bess.telemetry', 'recorder')
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(args.out).free / 1e6
    except OSError as error:
        raise CliError(f'{args.out}: {error.strerror or error}') from error
    if free < MIN_FREE_MB:
        raise CliError(f'{args.out}: only {free:.0f} MB free; at least {MIN_FREE_MB:.0f} MB are needed')
    with open_session(name='bess_record') as session:
        recorder = recorder_class(session.node, args.out, include=tuple(args.topics),
                                  exclude=tuple(args.exclude))
        recorder.start()
        started = time.monotonic()
        topics: set[str] = set()
        with suppress(KeyboardInterrupt):  # Ctrl-C and SIGTERM are the ordinary end of a recording
            _follow(session, recorder, args, started, topics)
        refused = recorder.refused
        closed = recorder.stop()
    stats = recorder.stats()
    problem = stats.stopped or ('' if closed else 'the disk did not take the rest in time')
    if not problem and not stats.written:
        problem = 'no message came on the chosen topics'
    result = {'bag': stats.bag, 'messages': stats.written, 'dropped': stats.dropped, 'topics': sorted(topics),
              'seconds': round(time.monotonic() - started, 1), 'refused': refused, 'problem': problem}
    if args.json:
        print_json(result)
    else:
        print(f'{stats.bag}: {stats.written} messages of {len(topics)} topics in {result["seconds"]} s, '
              f'{stats.dropped} dropped')
        for topic, reason in sorted(refused.items()):
            print(f'not recorded: {topic}: {reason}', file=sys.stderr)
    if problem:
        print(f'bess record: {problem}', file=sys.stderr)
    return 1 if problem else 0


def _follow(session: Session, recorder: Any, args: argparse.Namespace, started: float,
            topics: set[str]) -> None:
    """Look for new topics until the time is over or the recording ended by itself."""
    shown = 0.0
    live = sys.stderr.isatty()
    if live:
        print(f'recording into {args.out}; Ctrl-C ends it', file=sys.stderr)
    while not recorder.stats().stopped:
        left = started + args.seconds - time.monotonic() if args.seconds else LOOK_S
        if left <= 0.0:
            return
        session.until(lambda: False, min(left, LOOK_S))
        recorder.discover()
        topics.update(recorder.topics)
        if live and time.monotonic() - shown >= SHOW_S:
            shown = time.monotonic()
            stats = recorder.stats()
            print(f'\r\x1b[K{time.monotonic() - started:.0f} s, {len(topics)} topics, {stats.written} messages, '
                  f'{stats.dropped} dropped', end='', file=sys.stderr, flush=True)
    if live:
        print(file=sys.stderr)
