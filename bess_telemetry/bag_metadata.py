"""The ``metadata.yaml`` of a rosbag2 directory (layout version 9, as ROS 2 Jazzy writes it)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

VERSION = 9
FILE_NAME = 'metadata.yaml'
CLOSED_KEY = 'bess_closed'


@dataclass(frozen=True, slots=True)
class Topic:
    """A recorded topic. `qos_yaml`: YAML list of the publishers' QoS (see `qos_yaml`), '' = unknown."""

    name: str
    msgtype: str
    qos_yaml: str = ''
    type_hash: str = ''


@dataclass(frozen=True, slots=True)
class BagFile:
    """What one file of a bag holds; times in ns since epoch (0 when empty)."""

    name: str
    start: int = 0
    end: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def message_count(self) -> int:
        return sum(self.counts.values())


def _text(value: str) -> str:
    # A JSON string is a YAML double-quoted scalar.
    return json.dumps(value)


def render(topics: Sequence[Topic], files: Sequence[BagFile], *, closed: bool) -> str:
    """Text of ``metadata.yaml`` for these files."""
    used = [f for f in files if f.message_count]
    start = min((f.start for f in used), default=0)
    duration = max((f.end for f in used), default=0) - start
    counts: dict[str, int] = {}
    for f in used:
        for name, count in f.counts.items():
            counts[name] = counts.get(name, 0) + count
    lines = [
        'rosbag2_bagfile_information:',
        f'  version: {VERSION}',
        '  storage_identifier: mcap',
        f'  duration: {{nanoseconds: {duration}}}',
        f'  starting_time: {{nanoseconds_since_epoch: {start}}}',
        f'  message_count: {sum(counts.values())}',
        '  topics_with_message_count:' + ('' if topics else ' []'),
    ]
    for t in topics:
        lines += [
            '    - topic_metadata:',
            f'        name: {_text(t.name)}',
            f'        type: {_text(t.msgtype)}',
            '        serialization_format: cdr',
        ]
        if t.qos_yaml.strip():
            lines.append('        offered_qos_profiles:')
            lines += ['          ' + line for line in t.qos_yaml.strip().splitlines()]
        else:
            lines.append('        offered_qos_profiles: []')
        lines += [
            f'        type_description_hash: {_text(t.type_hash)}',
            f'      message_count: {counts.get(t.name, 0)}',
        ]
    lines += ['  compression_format: ""', '  compression_mode: ""',
              '  relative_file_paths:' + ('' if files else ' []')]
    lines += [f'    - {_text(f.name)}' for f in files]
    lines.append('  files:' + ('' if files else ' []'))
    for f in files:
        lines += [
            f'    - path: {_text(f.name)}',
            f'      starting_time: {{nanoseconds_since_epoch: {f.start}}}',
            f'      duration: {{nanoseconds: {f.end - f.start}}}',
            f'      message_count: {f.message_count}',
        ]
    lines += [f'  custom_data: {{{CLOSED_KEY}: "{str(closed).lower()}"}}', '  ros_distro: jazzy', '']
    return '\n'.join(lines)


def write(directory: Path, text: str, *, fsync: bool) -> None:
    """Replace the metadata of a bag in one step. Raises OSError and then leaves the old one."""
    temporary = directory / (FILE_NAME + '.tmp')
    try:
        with temporary.open('w', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        os.replace(temporary, directory / FILE_NAME)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if fsync:
        sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Make names in a directory durable. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_closed(directory: Path) -> bool:
    """True when the writer of this bag ended in order (False also for bags of other recorders)."""
    path = directory / FILE_NAME
    if not path.is_file():
        return False
    return f'{CLOSED_KEY}: "true"' in path.read_text('utf-8', errors='replace')


def _duration(value: Any) -> dict[str, int]:
    sec, nsec = divmod(int(value.nanoseconds), 1_000_000_000)
    return {'sec': sec, 'nsec': nsec}


def qos_yaml(profiles: Sequence[Any]) -> str:
    """QoS profiles (objects with the attributes of rclpy's QoSProfile) as rosbag2 notes them."""
    if not profiles:
        return ''
    return yaml.safe_dump([{
        'history': p.history.name.lower(),
        'depth': int(p.depth),
        'reliability': p.reliability.name.lower(),
        'durability': p.durability.name.lower(),
        'deadline': _duration(p.deadline),
        'lifespan': _duration(p.lifespan),
        'liveliness': p.liveliness.name.lower(),
        'liveliness_lease_duration': _duration(p.liveliness_lease_duration),
        'avoid_ros_namespace_conventions': bool(p.avoid_ros_namespace_conventions),
    } for p in profiles], sort_keys=False)
