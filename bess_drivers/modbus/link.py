"""A Modbus connection that never takes one answer for another, and from which no write leaves under `read_only`."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bess_drivers.device import Counters, DeviceError, NoAnswer, ReadOnlyError, Refused
from bess_drivers.modbus import frames
from bess_drivers.modbus.frames import ModbusRefused, Request
from bess_drivers.modbus.ports import Port, Ports, RtuPort, parse_address

__all__ = ['ModbusLink', 'ModbusRefused']


class ModbusLink:
    """One Modbus connection, called from one thread. Raises only errors of `bess_drivers.device`.

    After a time-out or a bad frame the connection is dropped, so that a late answer can never
    answer the next request; the next call connects again (waiting between attempts is the
    caller's). A refusal (`ModbusRefused`, with `.code`) is an answer and keeps the connection.
    On RTU, where answers carry no number, see `RtuPort` for what that guarantee means. Units
    that share a serial line share one link. The constructor raises ValueError for an address
    that it cannot read.
    """

    def __init__(
        self, address: str, *, timeout_s: float = 0.5, read_only: bool = False, ports: Ports | None = None
    ) -> None:
        if not 0 < timeout_s < float('inf'):
            raise ValueError(f'timeout_s must be above 0, not {timeout_s}')
        self.address, self.timeout_s, self.read_only = address, timeout_s, read_only
        self.counters = Counters()
        self._port: Port
        self._users: set[int] = set()
        if ports is None:
            self._port = parse_address(address, timeout_s)
        else:
            self._port, self._users = ports.take(address, timeout_s)
        self._opened = False

    def open(self) -> None:
        """Connect. Raises `Disconnected`."""
        self._users.add(id(self))
        if not (len(self._users) > 1 and self._port.connected):
            try:
                self._port.open()
            except DeviceError as error:
                self.counters.count(error)
                raise
        self.counters.reconnects += self._opened
        self._opened = True

    def close(self) -> None:
        """Disconnect, unless another unit uses the same port; never raises."""
        self._users.discard(id(self))
        if not self._users:
            self._port.close()

    @property
    def late_answers(self) -> int:
        """Late answers that came on this port and were thrown away."""
        return getattr(self._port, 'late_answers', 0)

    @property
    def connected(self) -> bool:
        """Whether the next request can go out without connecting first."""
        return self._port.connected

    def read(self, unit: int, function: int, address: int, count: int) -> list[int]:
        """`count` registers (FC3, FC4) or coils (FC1, FC2: 0 or 1 each) from `address` (as on the wire)."""
        return self._exchange(frames.read_request(unit, function, address, count))

    def write(self, unit: int, function: int, address: int, values: Sequence[int]) -> None:
        """Write by function code 5, 6, 15 or 16. As `write_registers`."""
        if function in frames.BIT_WRITES:
            self._exchange(frames.write_bits_request(unit, address, values, function == frames.WRITE_COIL))
        else:
            self._exchange(frames.write_request(unit, address, values, function == frames.WRITE_SINGLE))

    def read_holding(self, unit: int, address: int, count: int) -> list[int]:
        """`count` holding registers (FC3) from `address` (from 0, as on the wire)."""
        return self._exchange(frames.read_request(unit, frames.READ_HOLDING, address, count))

    def read_input(self, unit: int, address: int, count: int) -> list[int]:
        """`count` input registers (FC4) from `address` (from 0, as on the wire)."""
        return self._exchange(frames.read_request(unit, frames.READ_INPUT, address, count))

    def write_registers(
        self, unit: int, address: int, values: Sequence[int], *, single: bool = False
    ) -> None:
        """Write registers (FC16, or with `single` one by FC6); returns when the device confirmed.

        Raises `DeviceError`; `ReadOnlyError` before any byte, even of a connection, leaves.
        """
        self._exchange(frames.write_request(unit, address, values, single))

    def _exchange(self, request: Request) -> list[int]:
        # The one place through which bytes leave, hence the one where reading only is enforced.
        if self.read_only and request.function not in frames.READS:
            refusal = ReadOnlyError(f'{self.address} is read-only; not sent: {request}')
            self.counters.count(refusal)
            raise refusal
        if not self._port.connected:
            self.open()
        self._users.add(id(self))
        self.counters.requests += 1
        started = time.monotonic()
        try:
            registers = self._port.exchange(request, self.timeout_s)
        except Refused as error:
            self.counters.count(error)
            raise
        except DeviceError as error:
            # A serial line that others use stays open: what comes late is known by its unit there.
            if not (isinstance(error, NoAnswer) and isinstance(self._port, RtuPort) and len(self._users) > 1):
                self._port.close()
            self.counters.count(error)
            raise
        except BaseException:  # an interrupt in mid-exchange leaves an answer on its way
            self._port.close()
            raise
        self.counters.round_trips.append(time.monotonic() - started)
        self.counters.ok += 1
        self.counters.writes += request.function not in frames.READS
        return registers
