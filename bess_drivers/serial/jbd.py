"""JBD (Xiaoxiang, Overkill Solar, LLT) battery management systems on a serial line.

The BMS has no current regulator: it measures, and its FETs open or close the charge and discharge
paths. The codec is in `jbd_codec`, the meaning of its values in `jbd_reading`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import monotonic, sleep
from typing import ClassVar, TypeVar

from bess_core.values import BatteryReading, Identity
from bess_drivers.device import (
    BadChecksum,
    BadFrame,
    BadValue,
    DeviceError,
    NoAnswer,
    Refused,
    Role,
)
from bess_drivers.serial.jbd_codec import (
    BASIC,
    CELLS,
    FET_CONTROL,
    NAME,
    PROTECTIONS,
    READ,
    Basic,
    build_fet_control,
    build_read,
    build_write,
    diagnose,
    find_answer,
    parse_basic,
    parse_cells,
    parse_frame,
    parse_name,
)
from bess_drivers.serial.jbd_reading import JbdParams, reading_from
from bess_drivers.serial.link import Incomplete, SerialLink

__all__ = [
    'JbdBattery', 'JbdParams', 'build_fet_control', 'build_read', 'build_write', 'diagnose',
    'find_answer', 'parse_basic', 'parse_cells', 'parse_frame', 'parse_name', 'reading_from',
]  # fmt: skip

T = TypeVar('T')

CONFIRM_S = 2.0  # the FETs follow an order within a second; the rest is for repeated questions
READBACK_S = 0.1  # between two looks whether they did
FORGET = 4  # times `late_s`, after which no answer comes to a question that met silence
TRIES = 2  # for an answer that came damaged


class JbdBattery:
    """One JBD BMS (`BatteryDevice`)."""

    Params: ClassVar[type] = JbdParams
    role: ClassVar[Role] = Role.BATTERY
    PROBE_BAUDS: ClassVar[tuple[int, ...]] = (9600,)

    def __init__(self, params: JbdParams, read_only: bool = False) -> None:
        self.params = params
        self.link = SerialLink(
            params.address, timeout_s=params.timeout_s, late_s=params.late_s, read_only=read_only
        )
        self.repeated = 0  # questions asked again because an answer came damaged
        # Register asked for since the last good answer -> monotonic s until it may be answered.
        self._unsure: dict[int, float] = {}
        self._failure = DeviceError('not asked yet')
        self._cells: tuple[float, ...] = ()
        self._cells_time = self._basic_time = -inf
        self._polls = 0

    def open(self) -> None:
        """Open the port. Raises `Disconnected`."""
        self.link.open()

    def close(self) -> None:
        """Close the port and forget the cell voltages; never raises."""
        self.link.close()
        self._cells, self._polls = (), 0

    def identify(self) -> Identity:
        """Name and firmware. Raises `DeviceError` when no BMS of this kind answers."""
        basic = self._ask(BASIC, parse_basic)
        try:
            name = self._ask(NAME, parse_name)
        except Refused:
            name = ''
        return Identity(manufacturer='JBD', model=name, version=basic.version)

    def read(self, now: float) -> BatteryReading:
        """One poll: 0x03, and 0x04 when due; `time` is that of the older. Raises `DeviceError`."""
        # A failed poll forgets the cell voltages; the next one reads them anew.
        cells, self._cells = self._cells, ()
        basic = self._ask(BASIC, parse_basic)
        if not cells or self._polls >= self.params.cells_every:
            cells = self._ask(CELLS, parse_cells)
            self._cells_time, self._polls = now, 0
        reading = reading_from(basic, cells, self.params, min(now, self._cells_time), now)
        self._cells, self._polls = cells, self._polls + 1
        self._basic_time = now
        return reading

    def ages(self, now: float) -> dict[str, float]:
        """Seconds since the pack (0x03) and the cells (0x04) were read."""
        return {'pack': now - self._basic_time, 'cells': now - self._cells_time}

    def set_contactor(self, charge: bool, discharge: bool) -> None:
        """Switch the FETs and read back that they did, within about `CONFIRM_S` and `late_s`.

        Raises `Refused` when they do not follow, for example while a protection holds one off; the
        order itself stays in the BMS then. Raises `ReadOnlyError` before anything is sent.
        """
        deadline = monotonic() + CONFIRM_S + self.params.late_s
        request = build_fet_control(charge, discharge)
        ordered = False
        while True:
            try:
                if not ordered:
                    self._transfer(FET_CONTROL, request, _parse_nothing)
                    ordered = True
                basic = self._ask(BASIC, parse_basic)
                if (basic.charge_fet, basic.discharge_fet) == (charge, discharge):
                    return
                if monotonic() >= deadline:
                    raise Refused(_not_followed(basic, charge, discharge))
            except (NoAnswer, BadChecksum, BadFrame):
                # The order may have been lost with its answer: it is repeated, which does no harm.
                ordered = False
                if monotonic() >= deadline:
                    raise
            sleep(READBACK_S)

    def _ask(self, register: int, parse: Callable[[bytes], T]) -> T:
        """Read a register; asks once more when the answer came damaged."""
        for _ in range(TRIES - 1):
            try:
                return self._ask_in_step(register, parse)
            except (BadChecksum, BadFrame, Incomplete):
                self.repeated += 1
        return self._ask_in_step(register, parse)

    def _ask_in_step(self, register: int, parse: Callable[[bytes], T]) -> T:
        """Read a register of which no earlier answer can still be under way.

        The BMS answers in order. If this register was asked for before without a good answer,
        another one is read first: once its answer is here, the old one cannot come any more.
        """
        now = monotonic()
        self._unsure = {r: until for r, until in self._unsure.items() if until > now}
        if register in self._unsure:
            probe = next((probe for probe in _PROBES if probe not in self._unsure), None)
            if probe is None:
                # Still the last failure, and named so, until there is something safe to ask.
                kind = NoAnswer if isinstance(self._failure, NoAnswer) else type(self._failure)
                wait = min(self._unsure.values()) - now
                raise kind(f'{self._failure}; asking again in {wait:.1f} s')
            self._transfer(probe, build_read(probe), _PROBES[probe])
        return self._transfer(register, build_read(register), parse)

    def _transfer(self, register: int, request: bytes, parse: Callable[[bytes], T]) -> T:
        fresh, sent_before = register not in self._unsure, self.link.sent
        try:
            value = parse(parse_frame(self._exchange(register, request), register))
        except DeviceError as error:
            self._failure = error
            if isinstance(error, Refused):
                self._in_step(fresh)
            # A question that never left owes no answer; one that was answered badly neither.
            elif self.link.sent != sent_before and not isinstance(error, BadChecksum | BadValue):
                silence = isinstance(error, NoAnswer) and not isinstance(error, Incomplete)
                until = monotonic() + self.params.late_s * (FORGET if silence else 1)
                self._unsure[register] = max(until, self._unsure.get(register, until))
            raise
        self._in_step(fresh)
        return value

    def _exchange(self, register: int, request: bytes) -> bytes:
        try:
            return self.link.transact(
                request,
                lambda data: find_answer(data, register, request),
                # From the bytes, not from what the caller meant: read-only must hold for any frame.
                write=request[1] != READ,
            )
        except Incomplete as error:
            try:
                diagnose(error.data, register, request)
            except NoAnswer:
                raise error from None
            raise

    def _in_step(self, fresh: bool) -> None:
        # A register that was asked for before proves nothing: the answer may be the old one.
        if fresh:
            self._unsure.clear()


#: Registers that tell whether question and answer are in step. The payload is parsed as well, since
#: some devices do not echo the register: basic information has an odd length, cells an even one.
_PROBES: dict[int, Callable[[bytes], object]] = {
    CELLS: parse_cells,
    BASIC: parse_basic,
    NAME: parse_name,
}


def _parse_nothing(payload: bytes) -> None:
    if payload:
        raise BadFrame(f'{len(payload)} bytes in the answer to an order, none are expected')


def _not_followed(basic: Basic, charge: bool, discharge: bool) -> str:
    states = ('off', 'on')
    text = (
        f'asked for charge FET {states[charge]}, discharge FET {states[discharge]}; '
        f'they are {states[basic.charge_fet]}, {states[basic.discharge_fet]}'
    )
    active = [p.name for bit, p in enumerate(PROTECTIONS) if basic.protections >> bit & 1]
    return f'{text}; active: {", ".join(active)}' if active else text
