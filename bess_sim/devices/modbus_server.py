"""Simulated Modbus devices: a TCP server and an RTU device on a pseudo terminal.

Not pymodbus' server: its packet hook can change an answer but not hold it back, and it cannot close
its port and take it again, which the faults `late_answer` and `disconnect` need.
"""

from __future__ import annotations

import asyncio
import os
import pty
import socket
import threading
import tty
from collections.abc import Mapping
from pathlib import Path

from bess_sim.device_faults import DeviceFaults
from bess_sim.devices.modbus_pdu import (
    FrameFaults,
    IllegalAddress,
    IllegalValue,
    RegisterMap,
    Units,
    split_rtu,
    split_tcp,
    tcp_frame,
    with_crc,
)

__all__ = ['IllegalAddress', 'IllegalValue', 'ModbusDeviceServer', 'ModbusRtuServer', 'RegisterMap']

FAULT_POLL_S = 0.02  # how soon an injected `disconnect` closes idle connections
LINE_REST_S = 0.03  # silence after which a half request on a serial line is forgotten
MAX_CLIENTS = 64
START_TIMEOUT_S = 10.0


class _LoopThread:
    """An asyncio loop in a thread of its own; `_serve` is what it runs until `stop`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Start; returns when the device listens. Raises what prevented it (OSError)."""
        if self._thread is not None:
            raise RuntimeError(f'{self._name} is already started')
        self._failure = None
        self._ready.clear()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()
        if not self._ready.wait(START_TIMEOUT_S):
            raise TimeoutError(f'{self._name} did not start within {START_TIMEOUT_S} s')
        if self._failure is not None:
            self._thread.join()
            self._thread = None
            raise self._failure

    def stop(self) -> None:
        """Close everything; returns when the thread has ended. Harmless when not started."""
        thread, loop = self._thread, self._loop
        if thread is None or loop is None:
            return
        loop.call_soon_threadsafe(self._stopping.set)
        thread.join(START_TIMEOUT_S)
        if thread.is_alive():
            raise TimeoutError(f'{self._name} did not stop within {START_TIMEOUT_S} s')
        self._thread = None

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # handed to the thread that waits in start()
            self._failure = error
            if self._ready.is_set():
                raise
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        await self._open()
        self._ready.set()
        try:
            while not self._stopping.is_set():
                await self._tick()
                try:
                    await asyncio.wait_for(self._stopping.wait(), FAULT_POLL_S)
                except TimeoutError:
                    continue
        finally:
            await self._close()

    async def _open(self) -> None:
        raise NotImplementedError

    async def _tick(self) -> None:
        raise NotImplementedError

    async def _close(self) -> None:
        raise NotImplementedError


class _Connection(asyncio.Protocol):
    """One TCP client."""

    def __init__(self, server: ModbusDeviceServer) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.buffer = b''

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.server.faults.on('disconnect') or len(self.server.connections) >= MAX_CLIENTS:
            transport.abort()
            return
        transport.get_extra_info('socket').setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)

    def pause_writing(self) -> None:
        # A client that asks and asks and never reads: no real device would keep its answers.
        self.abort()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    @property
    def closing(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        if self.server.faults.on('disconnect'):
            self.abort()
            return
        self.buffer += data
        try:
            while not self.closing and (parts := split_tcp(self.buffer)) is not None:
                frame, self.buffer = parts
                self.server.answer(self, frame)
        except ValueError:
            self.abort()


class ModbusDeviceServer(_LoopThread):
    """A Modbus TCP device with one or more units. `port` 0 lets the system choose one.

    Faults: `flipped_bytes` inverts, in turn, each of the first 8 bytes (header and function code):
    Modbus TCP has no checksum, so that no client can notice a flip behind them. `disconnect`
    closes the port, so that connections are refused, and opens the same one again afterwards.
    A unit that does not exist answers with exception 11, as a gateway does.
    """

    def __init__(
        self,
        units: Mapping[int, RegisterMap],
        faults: DeviceFaults,
        *,
        host: str = '127.0.0.1',
        port: int = 0,
    ) -> None:
        super().__init__('modbus-tcp-device')
        self.faults = faults
        self.connections: set[_Connection] = set()
        self._host, self._port = host, port
        self._units, self._frame_faults = Units(units, faults), FrameFaults(faults)
        self.writes = self._units.writes
        self._reserved: socket.socket | None = None
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The TCP port; known once started."""
        return self._port

    def answer(self, connection: _Connection, frame: bytes) -> None:
        """Answer one whole request frame (called by the connection)."""
        unit = frame[6]
        pdu = self._units.answer(unit, frame[7:])
        transport = connection.transport
        if pdu is None or transport is None:
            return
        answer = tcp_frame(frame[:2], self._frame_faults.unit(unit), pdu)
        answer = self._frame_faults.spoil(answer, flip_within=8)
        if delay := self._frame_faults.delay():
            asyncio.get_running_loop().call_later(delay, transport.write, answer)
        else:
            transport.write(answer)

    def _bound(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((self._host, self._port))
        except OSError:
            sock.close()
            raise
        return sock

    async def _open(self) -> None:
        if self._port:
            # SO_REUSEPORT would let two devices share a port without a word; a plain bind does not.
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((self._host, self._port))
        # Bound but not listening: keeps the number ours while `disconnect` has the port closed.
        self._reserved = self._bound()
        self._port = self._reserved.getsockname()[1]
        await self._listen()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), sock=self._bound())

    async def _tick(self) -> None:
        cut = self.faults.on('disconnect')
        if cut and self._server is not None:
            self._drop()
        elif not cut and self._server is None:
            await self._listen()

    def _drop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.abort()

    async def _close(self) -> None:
        self._drop()
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None
        await asyncio.sleep(0)  # lets the aborted connections close their sockets


class ModbusRtuServer(_LoopThread):
    """Modbus RTU units on a pseudo terminal; its serial port is `link_path` (a symlink).

    Other units' requests and damaged ones are met with silence, as on a real line; unit 0 is the
    broadcast. `disconnect` unplugs: the symlink disappears and the line hangs up.
    """

    def __init__(
        self, units: Mapping[int, RegisterMap], faults: DeviceFaults, link_path: str | Path
    ) -> None:
        super().__init__('modbus-rtu-device')
        self.faults = faults
        self.link_path = Path(link_path)
        self._units, self._frame_faults = Units(units, faults), FrameFaults(faults)
        self.writes = self._units.writes
        self._fds: tuple[int, int] | None = None
        self._buffer = b''
        self._deaf = False
        self._rest: asyncio.TimerHandle | None = None

    async def _open(self) -> None:
        self._plug()

    async def _tick(self) -> None:
        cut = self.faults.on('disconnect')
        if cut and self._fds is not None:
            self._unplug()
        elif not cut and self._fds is None:
            self._plug()

    async def _close(self) -> None:
        self._unplug()

    def _plug(self) -> None:
        if self.link_path.exists() and not self.link_path.is_symlink():
            raise FileExistsError(f'{self.link_path} exists and is not a link')
        master, slave = pty.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        # The slave stays open here too: the line must not hang up whenever a client closes it.
        self._fds = (master, slave)
        self.link_path.unlink(missing_ok=True)
        self.link_path.symlink_to(os.ttyname(slave))
        asyncio.get_running_loop().add_reader(master, self._readable)

    def _unplug(self) -> None:
        if self._fds is None:
            return
        asyncio.get_running_loop().remove_reader(self._fds[0])
        self.link_path.unlink(missing_ok=True)
        for fd in self._fds:
            os.close(fd)
        self._fds = None
        self._forget()

    def _forget(self) -> None:
        """The line rests: whatever half request there was is over."""
        self._buffer, self._deaf = b'', False
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def _readable(self) -> None:
        if self._fds is None:
            return
        data = os.read(self._fds[0], 4096)
        if self._rest is not None:
            self._rest.cancel()
        self._rest = asyncio.get_running_loop().call_later(LINE_REST_S, self._forget)
        if self._deaf:
            return
        self._buffer += data
        try:
            while (parts := split_rtu(self._buffer)) is not None:
                frame, self._buffer = parts
                self._answer(frame[0], frame[1:])
        except ValueError:
            self._deaf = True  # until the line rests

    def _answer(self, unit: int, pdu: bytes) -> None:
        if unit == 0 and pdu[0] in (6, 16):
            for member in self._units.units:
                self._units.answer(member, pdu)
            return
        if unit not in self._units.units:
            return
        answer = self._units.answer(unit, pdu)
        if answer is None:
            return
        frame = with_crc(bytes([self._frame_faults.unit(unit)]) + answer)
        frame = self._frame_faults.spoil(frame, flip_within=len(frame))
        asyncio.get_running_loop().call_later(self._frame_faults.delay(), self._send, frame)

    def _send(self, frame: bytes) -> None:
        if self._fds is None:
            return
        try:
            os.write(self._fds[0], frame)
        except BlockingIOError:
            return  # nobody reads and the line is full: on a real wire these bytes are lost as well
