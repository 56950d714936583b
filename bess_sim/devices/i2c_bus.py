"""An I2C bus in a process of its own: `python -m bess_sim.devices.i2c_bus SOCKET [NAME ...]`.

Each line is one JSON object. `{"addr": 11, "m": [["w", "44"], ["r", 36]]}` is a combined transfer; its
answer is `{"r": ["..."]}` (hex of each read) or `{"e": 121}` (errno). `{"set": {...}, "addr": 11}` changes
the simulated world, `{"fault": "absent" | "flip" | "short" | "", "addr": 11}` disturbs a device,
`{"writes": true, "addr": 11}` lists what reached it in writes.
"""

from __future__ import annotations

import argparse
import json
import socketserver
import sys
import threading
from collections.abc import Sequence
from typing import Any, Protocol

from bess_sim.devices.bme import Bme280, Bme680
from bess_sim.devices.bq40z50 import Bq40z50

ABSENT = 121  # EREMOTEIO


class I2cChip(Protocol):
    """One simulated device."""

    address: int

    def write(self, data: bytes) -> None:
        """A write without a read behind it."""

    def read(self, command: bytes, size: int) -> bytes:
        """A read behind `command`; fewer bytes are filled with 0xFF, as on a real bus."""

    def set(self, values: dict[str, Any]) -> None:
        """Change what is measured."""


CHIPS: dict[str, type] = {'bq40z50': Bq40z50, 'bme280': Bme280, 'bme680': Bme680}


class World:
    """All devices of the bus and what disturbs them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.chips: dict[int, I2cChip] = {c.address: c for c in (CHIPS[n]() for n in names)}
        self.faults: dict[int, str] = {}
        self.writes: dict[int, list[str]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one line."""
        address = int(request.get('addr', 0))
        if 'fault' in request:
            self.faults[address] = request['fault']
            return {}
        if 'writes' in request:
            return {'writes': self.writes.get(address, [])}
        chip = self.chips.get(address)
        if chip is None or (self.faults.get(address) == 'absent' and 'm' in request):
            return {'e': ABSENT}
        if 'set' in request:
            chip.set(request['set'])
            return {}
        try:
            return self._transfer(chip, request['m'], self.faults.get(address, ''))
        except OSError as error:
            return {'e': error.errno}

    def _transfer(self, chip: I2cChip, messages: list[list[Any]], fault: str) -> dict[str, Any]:
        command, read = b'', []
        for kind, value in messages:
            if kind == 'w':
                command = bytes.fromhex(value)
                continue
            data = bytearray(chip.read(command, int(value))[:int(value)])
            if fault == 'short':
                data = data[:len(data) // 2]
            elif fault == 'flip' and data:
                data[0] ^= 0x55
            read.append(bytes(data).ljust(int(value), b'\xff').hex())
        if not read and command:
            self.writes.setdefault(chip.address, []).append(command.hex())
            chip.write(command)
        return {'r': read}


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until standard input ends, so that no orphan stays."""
    parser = argparse.ArgumentParser()
    parser.add_argument('socket')
    parser.add_argument('names', nargs='*', default=['bq40z50'])
    args = parser.parse_args(argv)
    world = World(args.names)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(json.dumps(world.answer(json.loads(line))).encode() + b'\n')

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    with Server(args.socket, Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print('ready', flush=True)
        sys.stdin.read()
        server.shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
