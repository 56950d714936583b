"""CAN channels: one receiver thread per bus, and mailboxes that hold the newest frame of each id.

Batteries on a CAN bus are not asked, they talk: up to some thousand frames per second, of which a
poll needs the newest of each kind only. So a thread of its own empties the channel all the time (a
reader that pauses loses frames without notice) and keeps the newest ones; decoding happens once per
poll. Channels are shared by all devices of one process that name the same address.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from urllib.parse import parse_qsl

import can

from bess_drivers.device import Disconnected, ReadOnlyError

MAX_ID = 0x1FFFFFFF
WAIT_S = 0.1  # how long the receiver waits for one frame before it looks whether it shall end
SEND_S = 0.2  # how long sending one frame may block
MAX_FAILED = 100  # receive errors in a row after which the channel is opened anew
MAX_BITRATE = 1_000_000
LONG = 1 << 31  # of a key: 29 bits though the id is below 0x800


@dataclass(frozen=True)
class CanAddress:
    """Where a CAN bus is: `interface` and `channel` of python-can, bit rate in bit/s (0 = as it is set)."""

    interface: str
    channel: str
    bitrate: int = 0
    port: int = 0  # UDP port, for `udp_multicast`

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes two addresses the same bus."""
        return (self.interface, self.channel, self.port)


def parse_address(address: str) -> CanAddress:
    """Parse `can:can0`, `can:slcan:/dev/ttyUSB0?bitrate=500000`, `can:udp_multicast:239.74.163.2?port=43113`.

    Raises ValueError that names the setting, its value and what is allowed.
    """
    if not address.startswith('can:'):
        raise ValueError(f'address {address!r} is no CAN bus; expected can:can0 or can:slcan:/dev/ttyUSB0')
    path, _, query = address.removeprefix('can:').partition('?')
    interface, colon, channel = path.partition(':')
    if not colon:
        interface, channel = 'socketcan', path
    if not interface or not channel:
        raise ValueError(f'address {address!r} names no channel; expected can:can0 or can:INTERFACE:CHANNEL')
    if interface not in can.VALID_INTERFACES:
        raise ValueError(f'address {address!r}: unknown interface {interface!r}, allowed '
                         f'{", ".join(sorted(can.VALID_INTERFACES))}')
    numbers = {'bitrate': 0, 'port': 0}
    limits = {'bitrate': (10_000, MAX_BITRATE), 'port': (1, 65535)}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in numbers:
            raise ValueError(f'address {address!r}: unknown setting {name!r}, allowed bitrate, port')
        low, high = limits[name]
        if not value.isdecimal() or not low <= int(value) <= high:
            raise ValueError(f'address {address!r}: {name} is {value!r}, allowed {low}..{high}')
        numbers[name] = int(value)
    return CanAddress(interface, channel, numbers['bitrate'], numbers['port'])


def frame_key(can_id: int, extended: bool) -> int:
    """What a frame is known by here: its id; with bit 31 (as in a DBC) for 29 bits of which 11 would do.

    0x351 with 11 bits and 0x351 with 29 bits are two frames, of two senders.
    """
    return can_id | LONG if extended and can_id <= 0x7FF else can_id


@dataclass(frozen=True, slots=True)
class Frame:
    """A received data frame; `time` is monotonic s of its arrival."""

    time: float
    data: bytes


class Mailbox:
    """The newest frame of each id that one device wants.

    `select` tells apart frames of one id that carry different contents (multiplexed): its result is
    the second part of the key. It runs in the receiver thread and must not raise.
    """

    def __init__(self, ids: Iterable[int], select: dict[int, Callable[[bytes], int]] | None = None) -> None:
        self.ids = frozenset(ids)
        self.select = select or {}
        self.frames: dict[tuple[int, int], Frame] = {}
        self.received = 0

    def put(self, can_id: int, data: bytes, time: float) -> None:
        """Take a frame in; called by the receiver thread."""
        select = self.select.get(can_id)
        self.frames[(can_id, select(data) if select else 0)] = Frame(time, data)
        self.received += 1

    def get(self, can_id: int, selected: int = 0) -> Frame | None:
        """The newest frame of an id, or None."""
        return self.frames.get((can_id, selected))

    def ages(self) -> dict[str, float]:
        """Seconds since each frame came, by id (and selector, where an id carries several)."""
        now = monotonic()
        return {f'{can_id:#x}' + (f'.{selected}' if can_id in self.select else ''): now - frame.time
                for (can_id, selected), frame in self.frames.copy().items()}

    def clear(self) -> None:
        """Forget everything."""
        self.frames = {}


@dataclass
class ChannelCounters:
    """Traffic of a channel, for diagnostics."""

    received: int = 0
    unwanted: int = 0  # of ids that nobody wants
    error_frames: int = 0
    sent: int = 0


def _open_bus(address: CanAddress) -> Any:
    settings: dict[str, Any] = {}
    if address.bitrate:
        settings['bitrate'] = address.bitrate
    if address.interface == 'udp_multicast':
        settings |= {'fd': False, 'hop_limit': 0}  # never further than this machine
        if address.port:
            settings['port'] = address.port
    try:
        return can.Bus(interface=address.interface, channel=address.channel, **settings)
    except (can.CanError, OSError, ValueError, ImportError) as error:
        raise Disconnected(f'CAN {address.interface}:{address.channel} cannot be opened: {error}') from error


class Channel:
    """One open CAN bus with its receiver thread; made by `connect`, shared, closed with its last user."""

    def __init__(self, address: CanAddress) -> None:
        self.address = address
        self.counters = ChannelCounters()
        self.failure = ''
        self.users = 0
        self._bus = _open_bus(address)
        self._boxes: dict[int, tuple[Mailbox, ...]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._receive, name=f'can {address.channel}', daemon=True)
        self._thread.start()

    def attach(self, box: Mailbox) -> None:
        """Put frames into this mailbox from now on."""
        with self._lock:
            boxes = dict(self._boxes)
            for can_id in box.ids:
                boxes[can_id] = (*boxes.get(can_id, ()), box)
            self._boxes = boxes

    def detach(self, box: Mailbox) -> None:
        """Put no more frames into it."""
        with self._lock:
            self._boxes = {can_id: kept for can_id, boxes in self._boxes.items()
                           if (kept := tuple(b for b in boxes if b is not box))}

    def send(self, can_id: int, data: bytes) -> None:
        """Send a data frame (29 bit when the id needs it). Raises `Disconnected`."""
        message = can.Message(arbitration_id=can_id, data=data, is_extended_id=can_id > 0x7FF)
        try:
            self._bus.send(message, timeout=SEND_S)
        except (can.CanError, OSError) as error:
            raise Disconnected(f'CAN {self.address.channel}: frame {can_id:#x} could not be sent: {error}') from error
        self.counters.sent += 1

    def close(self) -> None:
        """End the receiver and the bus."""
        self._stop.set()
        self._thread.join(WAIT_S * 10)
        self._bus.shutdown()

    def _receive(self) -> None:
        counters, stop, receive = self.counters, self._stop, self._bus.recv
        failed = 0  # in a row
        while not stop.is_set():
            try:
                message = receive(WAIT_S)
            except Exception as error:  # noqa: BLE001 - what others put on a UDP or serial bus may be anything
                counters.error_frames += 1
                failed += 1
                if isinstance(error, OSError) or failed > MAX_FAILED:
                    self.failure = str(error) or type(error).__name__
                    return
                stop.wait(0.001 * failed)
                continue
            failed = 0
            if message is None:
                continue
            if message.is_error_frame or message.is_remote_frame:
                counters.error_frames += 1
                continue
            counters.received += 1
            key = message.arbitration_id
            if key <= 0x7FF and message.is_extended_id:  # `frame_key`, without a call for each frame
                key |= LONG
            boxes = self._boxes.get(key)
            if boxes is None:
                counters.unwanted += 1
                continue
            now, data = monotonic(), bytes(message.data)
            for box in boxes:
                box.put(key, data, now)


_channels: dict[tuple[str, str, int], Channel] = {}
_channels_lock = threading.Lock()


@dataclass
class CanLink:
    """A device's own view of a channel: its mailbox, and sending unless `read_only`."""

    address: CanAddress
    mailbox: Mailbox
    read_only: bool = False
    channel: Channel | None = field(default=None, init=False)

    def open(self) -> None:
        """Join the channel, opening it for the first. Raises `Disconnected`."""
        self.close()
        with _channels_lock:
            channel = _channels.get(self.address.key)
            if channel is None or channel.failure:
                channel = _channels[self.address.key] = Channel(self.address)
            channel.users += 1
        self.mailbox.clear()
        channel.attach(self.mailbox)
        self.channel = channel

    def close(self) -> None:
        """Leave the channel; the last one closes it."""
        channel, self.channel = self.channel, None
        if channel is None:
            return
        channel.detach(self.mailbox)
        with _channels_lock:
            channel.users -= 1
            last = channel.users == 0
            if last and _channels.get(self.address.key) is channel:
                del _channels[self.address.key]
        if last:
            channel.close()

    def check(self) -> Channel:
        """The open channel. Raises `Disconnected` when it is not open or its receiver has ended."""
        if self.channel is None:
            raise Disconnected(f'CAN {self.address.channel} is not open')
        if self.channel.failure:
            raise Disconnected(f'CAN {self.address.channel}: {self.channel.failure}')
        return self.channel

    def send(self, can_id: int, data: bytes) -> None:
        """Send a frame. Raises `ReadOnlyError` before anything leaves, `Disconnected`."""
        if self.read_only:
            raise ReadOnlyError(f'frame {can_id:#x} not sent: read only')
        self.check().send(can_id, data)
