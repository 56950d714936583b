"""Client of the control sockets of a running bench."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bess_sim.control_server import reachable


class ControlError(RuntimeError):
    """The bench refused a request, or did not answer."""


class DeviceControl:
    """One control socket, `<run_dir>/<device>.sock` or `world.sock`. Blocking, not thread-safe."""

    def __init__(self, path: str | Path, timeout: float = 5.0) -> None:
        self.path, self._timeout = Path(path), timeout
        self._socket: socket.socket | None = None
        self._buffer = b''

    def command(self, cmd: str, **fields: Any) -> dict[str, Any]:
        """Send a request and return the answer. Raises `ControlError`."""
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._socket.settimeout(self._timeout)
                with reachable(self.path) as address:
                    self._socket.connect(address)
            self._socket.sendall(json.dumps({'cmd': cmd, **fields}).encode() + b'\n')
            answer = json.loads(self._line(self._socket))
        except OSError as error:
            self.close()
            raise ControlError(f'{self.path}: {error or type(error).__name__}') from error
        if not answer.get('ok'):
            raise ControlError(f'{self.path.stem}: {answer.get("error")}')
        return dict(answer)

    def _line(self, connection: socket.socket) -> bytes:
        while b'\n' not in self._buffer:
            data = connection.recv(65_536)
            if not data:
                raise ConnectionResetError('the other end closed')
            self._buffer += data
        line, self._buffer = self._buffer.split(b'\n', 1)
        return line

    def inject(
        self, fault: str, value: float | None = None, for_s: float | None = None, **fields: Any
    ) -> None:
        """Switch a fault on. World: also `unit` and `index`, and `for_s` counts plant seconds."""
        self.command('inject', fault=fault, value=value, for_s=for_s, **fields)

    def clear(self, fault: str = '') -> None:
        """Switch one fault, or all, off."""
        self.command('clear', fault=fault)

    def status(self) -> dict[str, Any]:
        """What it is, and its active faults."""
        return self.command('status')

    def writes(self) -> list[dict[str, Any]]:
        """Writes that a Modbus device took: `time` (monotonic, s), `unit`, `address`, `values`."""
        return list(self.command('writes')['writes'])

    def override_power(self, value: float | None) -> None:
        """Meters: show this power (W, + = import); None = the plant's again."""
        self.command('override_power', value=value)

    def sample(self) -> dict[str, Any]:
        """World: everything the plant knows now."""
        return self.command('sample')

    def set(self, **fields: Any) -> None:
        """World: `house_power`, `pv_power` (W, magnitudes), `frequency`, `voltage`, `ambient`.

        None gives a value back to its profile or model (not possible for `ambient`).
        """
        self.command('set', **fields)

    def close(self) -> None:
        """Disconnect; the next command connects again."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._buffer = None, b''

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
