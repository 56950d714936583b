"""A CAN bus of this test alone: UDP multicast on this machine, at a port of its own."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import can
import pytest

GROUP = '239.74.163.2'


@pytest.fixture
def can_port() -> int:
    """A UDP port that nobody uses."""
    for _ in range(50):
        port = random.randrange(20_000, 32_000)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(('', port))
            except OSError:
                continue
            return port
    raise RuntimeError('no free UDP port')


@pytest.fixture
def can_address(can_port: int) -> str:
    """Address for drivers and simulated devices; skips where multicast does not work."""
    try:
        can.Bus(interface='udp_multicast', channel=GROUP, port=can_port, fd=False, hop_limit=0).shutdown()
    except (can.CanError, OSError) as error:
        pytest.skip(f'no UDP multicast on this machine: {error}')
    return f'can:udp_multicast:{GROUP}?port={can_port}'


@pytest.fixture
def wire(can_address: str, can_port: int) -> Iterator[can.BusABC]:
    """Another participant of that bus: sends what a test wants, and sees what leaves."""
    bus = can.Bus(interface='udp_multicast', channel=GROUP, port=can_port, fd=False, hop_limit=0)
    yield bus
    bus.shutdown()
