"""Battery with a TI BQ40Z50 gauge on SMBus: the driver, and the administrative operations on the gauge.

Polling uses SBS reads only, so that `read_only` truly sends no write. Everything through
ManufacturerBlockAccess (0x44) starts with a write, also a question; it is refused under `read_only`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf, nan
from typing import ClassVar, TypeVar

from bess_core.params import param
from bess_core.values import BatteryReading, Identity
from bess_drivers.device import BadChecksum, BadFrame, NoAnswer, ReadOnlyError, Refused, Role
from bess_drivers.serial.bms_reading import PackParams, Snapshot, checked, reading_from
from bess_drivers.smbus import bq40z50_codec as c
from bess_drivers.smbus.bq40z50_codec import Security
from bess_drivers.smbus.i2c import SmbusDevice
from bess_drivers.smbus.keys import read_keys

T = TypeVar('T')
ADDRESS = 0x0B
SETTLE_S = 0.1  # between two looks whether an operation was carried out, and after a write to data flash
RESET_S = 5.0  # how long a gauge may take to start again
LEVEL_S = 2.0  # how long a change of the security mode may take


@dataclass(frozen=True)
class Bq40z50Params(PackParams):
    """Settings of one gauge."""

    address: str = param('', doc='i2c:/dev/i2c-1?address=0x0b')
    cells: int = param(4, doc='cells in series', low=1, high=4)
    sensors: int = param(0, doc='temperature sensors beside the cell temperature', low=0, high=4)
    pec: bool = param(True, doc='check the packet error code of each transfer and send it')
    tries: int = param(3, doc='how often a question is asked whose answer came damaged', low=1, high=5)
    key_file: str = param('', doc='file with the keys of the gauge, readable by its owner only; empty = no unsealing')
    quiet_s: float = param(4.0, 's', 'silence on the bus before keys are sent', low=0.0, high=30.0)


class Bq40z50Battery:
    """A battery with one gauge (`BatteryDevice`)."""

    Params: ClassVar[type] = Bq40z50Params
    role: ClassVar[Role] = Role.BATTERY

    def __init__(self, params: Bq40z50Params, read_only: bool = False,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self.params = params
        self.link = SmbusDevice(params.address, ADDRESS, with_pec=params.pec, read_only=read_only)
        self.repeated = 0
        self._sleep = sleep
        self._scale = (1.0, 1.0)

    def open(self) -> None:
        """Open the bus. Raises `Disconnected`."""
        self.link.open()

    def close(self) -> None:
        """Close the bus; never raises."""
        self.link.close()

    def _ask(self, question: Callable[[], T]) -> T:
        """A question; a damaged answer is asked for again. Raises `DeviceError`."""
        for left in range(self.params.tries - 1, -1, -1):
            try:
                return question()
            except (BadChecksum, BadFrame):
                if not left:
                    raise
                self.repeated += 1
        raise AssertionError('tries is at least 1')

    def word(self, command: int) -> int:
        """One SBS word. Raises `DeviceError`."""
        return self._ask(lambda: self.link.read_word(command))

    def block(self, command: int) -> bytes:
        """One SBS block. Raises `DeviceError`."""
        return self._ask(lambda: self.link.read_block(command))

    def identify(self) -> Identity:
        """Names as the gauge has them; chemistry as version. Raises `DeviceError`."""
        maker, model, chemistry = (c.text(self.block(n)) for n in (c.MANUFACTURER_NAME, c.DEVICE_NAME, c.CHEMISTRY))
        c.parse_operation(self.block(c.OPERATION_STATUS))  # another smart battery has no such block
        self._scale = c.scales(self.word(c.SPECIFICATION))
        return Identity(maker, model, str(self.word(c.SERIAL)), chemistry)

    def operation(self) -> c.Operation:
        """OperationStatus. Raises `DeviceError`."""
        return self._ask(lambda: c.parse_operation(self.link.read_block(c.OPERATION_STATUS)))

    def poll(self) -> tuple[Snapshot, float, float]:
        """One complete poll, with stored and full energy in Wh (NaN where the gauge counts charge)."""
        p, (volts, amps) = self.params, self._scale
        state = self.operation()
        conditions = c.safety_conditions(
            self._ask(lambda: c.dword('SafetyStatus', self.link.read_block(c.SAFETY_STATUS))),
            self._ask(lambda: c.dword('PFStatus', self.link.read_block(c.PF_STATUS))))
        if state.security is not Security.SEALED:
            conditions = (*conditions, c.UNSEALED)
        cells = c.parse_cells(self.block(c.DA_STATUS_1), p.cells)
        temperatures = c.parse_temperatures(self.block(c.DA_STATUS_2), p.sensors)
        current = self.word(c.CURRENT)
        limit = self.word(c.CHARGING_CURRENT)
        remaining, full = self.word(c.REMAINING), self.word(c.FULL)
        energy = bool(self.word(c.BATTERY_MODE) & c.CAPM)
        in_charge = amps / 1000.0 if not energy else nan
        in_energy = amps * volts / 100.0 if energy else nan
        snapshot = Snapshot(
            voltage=checked('voltage in V', self.word(c.VOLTAGE) * volts / 1000.0, 0.0, 6.0 * p.cells * volts),
            current=(current - 0x10000 if current & 0x8000 else current) * amps / 1000.0,
            cells=cells, temperatures=temperatures, charge=remaining * in_charge, charge_full=full * in_charge,
            soc=checked('state of charge in %', self.word(c.RELATIVE_SOC) & 0xFF, 0, 100) / 100.0,
            soh=checked('state of health in %', self.word(c.STATE_OF_HEALTH) & 0xFF, 0, 100) / 100.0,
            charge_on=state.charge_on, discharge_on=state.discharge_on,
            charge_limit=inf if limit == c.NOT_LIMITED else limit * amps / 1000.0, conditions=conditions)
        return snapshot, remaining * in_energy, full * in_energy

    def read(self, now: float) -> BatteryReading:
        """One poll; `now` (s, site clock) becomes its time. Raises `DeviceError`."""
        snapshot, energy, energy_full = self.poll()
        reading = reading_from(snapshot, self.params, 'bq40z50', now, idle=0.02)
        return reading if energy != energy else replace(reading, energy=energy, energy_full=energy_full)

    def set_contactor(self, charge: bool, discharge: bool) -> None:
        """Raises `Refused`."""
        raise Refused('the switches of a BQ40Z50 belong to its protections; it has no order that only blocks')

    # -- administration ----------------------------------------------------------------------------------

    def mac(self, code: int) -> bytes:
        """Answer to a ManufacturerAccess code. Raises `DeviceError`."""
        return self._ask(lambda: self._mac(code))

    def _mac(self, code: int) -> bytes:
        self.link.write_block(c.BLOCK_ACCESS, code.to_bytes(2, 'little'))
        return c.answer_of(code, self.link.read_block(c.BLOCK_ACCESS, 34))

    def unseal(self) -> None:
        """From sealed to unsealed, confirmed. Raises `Refused` without keys or when the gauge stays sealed."""
        self._need_writing()
        if self.operation().security is Security.SEALED:
            self._raise_level(read_keys(self.params.key_file).unseal, 'unseal', (Security.UNSEALED,
                                                                                 Security.FULL_ACCESS))

    def full_access(self) -> None:
        """To full access, from sealed over unsealed. Raises as `unseal`."""
        self._need_writing()
        if self.operation().security is Security.FULL_ACCESS:
            return
        self.unseal()
        self._raise_level(read_keys(self.params.key_file).full_access, 'full_access', (Security.FULL_ACCESS,))

    def _raise_level(self, words: Sequence[int], name: str, wanted: tuple[Security, ...]) -> None:
        if not words:
            raise Refused(f'the key file has no line "{name}:"')
        self._sleep(self.params.quiet_s)  # a gauge that was asked anything meanwhile does not take the keys
        for word in words:
            self.link.write_word(c.MANUFACTURER_ACCESS, word)
        self._until(lambda: self.operation().security in wanted, LEVEL_S,
                    f'the gauge did not accept the keys for "{name}"')

    def seal(self) -> None:
        """Seal, confirmed. Raises `DeviceError`."""
        self._need_writing()
        self.link.write_block(c.BLOCK_ACCESS, c.MAC_SEAL.to_bytes(2, 'little'))
        self._until(lambda: self.operation().security is Security.SEALED, LEVEL_S, 'the gauge is still not sealed')

    def reset(self) -> None:
        """Restart the gauge; returns when it answers again. Raises `DeviceError`.

        Whether a sealed gauge obeys is not in its manual, so it is unsealed first; it starts sealed.
        """
        self._need_writing()
        self.unseal()
        self.link.write_block(c.BLOCK_ACCESS, c.MAC_RESET.to_bytes(2, 'little'))
        self._until(lambda: not self.operation().starting, RESET_S, 'the gauge does not come back', patient=True)

    def read_flash(self, address: int, size: int) -> bytes:
        """`size` bytes of data flash. Needs an unsealed gauge. Raises `DeviceError`."""
        self._need_writing()
        self._check_flash(address, size)
        self._need_unsealed()
        data = b''
        while len(data) < size:
            at = address + len(data)
            data += self.mac(at)[:c.FLASH_BLOCK]
        return data[:size]

    def write_flash(self, address: int, data: bytes) -> None:
        """Write data flash and read it back; a sealed gauge is unsealed for it and sealed again.

        Raises `Refused` when something else is read back, and `DeviceError`.
        """
        self._need_writing()
        self._check_flash(address, len(data))
        with self._unsealed():
            for start in range(0, len(data), c.FLASH_BLOCK):
                part = data[start:start + c.FLASH_BLOCK]
                self.link.write_block(c.BLOCK_ACCESS, (address + start).to_bytes(2, 'little') + part)
                self._sleep(SETTLE_S)
            found = self.read_flash(address, len(data))
            if found != data:
                raise Refused(f'data flash 0x{address:04x}: wrote {data.hex()}, read back {found.hex()}')

    @contextmanager
    def _unsealed(self) -> Iterator[None]:
        sealed = self.operation().security is Security.SEALED
        if sealed:
            self.unseal()
        try:
            yield
        finally:
            if sealed:
                self.seal()

    def _need_writing(self) -> None:
        if self.link.read_only:
            raise ReadOnlyError(f'{self.link.text} is read-only; nothing was sent')

    def _need_unsealed(self) -> None:
        if self.operation().security is Security.SEALED:
            raise Refused('data flash cannot be read while the gauge is sealed')

    @staticmethod
    def _check_flash(address: int, size: int) -> None:
        if size < 1 or address < c.FLASH_START or address + size > c.FLASH_END:
            raise Refused(f'0x{address:04x} with {size} bytes is outside data flash '
                          f'0x{c.FLASH_START:04x}..0x{c.FLASH_END - 1:04x}')

    def _until(self, done: Callable[[], bool], limit: float, problem: str, *, patient: bool = False) -> None:
        """Look until it is done. `patient`: the gauge may be silent meanwhile. Raises `Refused`."""
        for _ in range(max(1, round(limit / SETTLE_S))):
            self._sleep(SETTLE_S)
            try:
                if done():
                    return
            except NoAnswer:
                if not patient:
                    raise
        raise Refused(problem)

    def operate(self, operation: str, arguments: Sequence[str]) -> list[str]:
        """An administrative operation by name (service `~/operate`); results as `name=value`.

        Raises `Refused` for a wrong name or wrong arguments, else as the operation.
        """
        self._need_writing()
        known: dict[str, tuple[int, Callable[..., list[str]]]] = {
            'info': (0, self._info), 'unseal': (0, self._then(self.unseal)), 'seal': (0, self._then(self.seal)),
            'full_access': (0, self._then(self.full_access)), 'reset': (0, self._then(self.reset)),
            'read_flash': (2, self._read_flash), 'write_flash': (2, self._write_flash)}
        if operation not in known:
            raise Refused(f'no operation {operation!r}; there is: {", ".join(known)}')
        count, run = known[operation]
        if len(arguments) != count:
            raise Refused(f'{operation} takes {count} arguments, not {len(arguments)}')
        return run(*arguments)

    def _then(self, run: Callable[[], None]) -> Callable[[], list[str]]:
        def state() -> list[str]:
            run()
            return [f'security={self.operation().security.name.lower()}']

        return state

    def _info(self) -> list[str]:
        codes = (('device_type', c.MAC_DEVICE_TYPE), ('firmware', c.MAC_FIRMWARE), ('hardware', c.MAC_HARDWARE),
                 ('chem_id', c.MAC_CHEM_ID))
        return [f'security={self.operation().security.name.lower()}',
                *(f'{name}={self.mac(code).hex()}' for name, code in codes)]

    def _read_flash(self, address: str, size: str) -> list[str]:
        at, count = _number(address), _number(size)
        with self._unsealed():
            return [f'0x{at:04x}={self.read_flash(at, count).hex()}']

    def _write_flash(self, address: str, data: str) -> list[str]:
        try:
            content = bytes.fromhex(data)
        except ValueError as error:
            raise Refused(f'data {data!r} is no sequence of hex bytes') from error
        at = _number(address)
        self.write_flash(at, content)
        return [f'0x{at:04x}={content.hex()}']


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError as error:
        raise Refused(f'{text!r} is no whole number') from error


