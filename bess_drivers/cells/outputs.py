"""The relay of a cell controller: a pin with or without a contact that is read back, or a file of the kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from bess_core.values import Switch
from bess_drivers.io.gpio import GpioModule, GpioParams
from bess_drivers.io.sysfs import read_bit, write_text


class RelayOutput(Protocol):
    """Drives the relay."""

    def open(self) -> None:
        """Take it. Raises `DeviceError`."""

    def closed(self) -> bool:
        """Whether it is driven closed. Raises `DeviceError`."""

    def contact(self) -> bool | None:
        """Whether its contact is closed, as read back; None = no contact is wired. Raises `DeviceError`."""

    def drive(self, closed: bool) -> None:
        """Raises `DeviceError`."""

    def close(self) -> None:
        """Let it go; never raises."""


class PinRelay:
    """Pins `relay` and, if there is one, `contact`."""

    def __init__(self, address: str, pins: list[str], read_only: bool) -> None:
        self.module = GpioModule(GpioParams(address=address, pins=pins), read_only=read_only)
        names = self.module.pins
        if 'relay' not in names or names['relay'].kind != 'relay':
            raise ValueError('relay_pins needs a pin "relay=LINE relay"')
        self._has_contact = 'contact' in names
        self._is_open = False

    def open(self) -> None:
        """See `RelayOutput`."""
        if not self._is_open:
            self.module.open()
            self._is_open = True

    def closed(self) -> bool:
        """See `RelayOutput`."""
        return self.module.read(0.0).digital_outputs['relay'] is Switch.ON

    def contact(self) -> bool | None:
        """See `RelayOutput`."""
        return self.module.read(0.0).digital_inputs['contact'] is Switch.ON if self._has_contact else None

    def drive(self, closed: bool) -> None:
        """See `RelayOutput`."""
        self.module.write_output('relay', float(closed))

    def close(self) -> None:
        """See `RelayOutput`."""
        self.module.close()
        self._is_open = False


class FileRelay:
    """A file that holds 0 or 1, such as `/sys/class/stratopi/relay/status`. It keeps its state over a restart."""

    def __init__(self, path: str, read_only: bool) -> None:
        self._path, self._read_only = Path(path), read_only

    def open(self) -> None:
        """See `RelayOutput`."""
        read_bit(self._path)

    def closed(self) -> bool:
        """See `RelayOutput`."""
        return read_bit(self._path)

    def contact(self) -> bool | None:
        """See `RelayOutput`."""
        return None

    def drive(self, closed: bool) -> None:
        """See `RelayOutput`."""
        write_text(self._path, str(int(closed)), read_only=self._read_only)

    def close(self) -> None:
        """See `RelayOutput`."""


def relay_output(address: str, pins: list[str], read_only: bool) -> RelayOutput:
    """By its address. Raises ValueError."""
    if not address:
        raise ValueError('relay is missing; e.g. gpio:/dev/gpiochip0 or file:/sys/class/stratopi/relay/status')
    if address.startswith('file:'):
        return FileRelay(address.removeprefix('file:'), read_only)
    return PinRelay(address, pins, read_only)
