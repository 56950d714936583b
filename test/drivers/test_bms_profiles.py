"""BMS that are Modbus profiles, against recorded frames of others."""

from __future__ import annotations

from typing import Any

import pytest

from bess_core.values import Mode
from bess_drivers.device import Refused
from bess_drivers.modbus.frames import rtu_crc
from bess_drivers.modbus.profile_device import ModbusBattery, ProfileParams

# Recorded from a Daly BMS (aiobmsble, Apache-2.0): 62 registers from 0.
DALY = ('d2037c101f10291033103d000000000000000000000000000000000000000000000000000000000000000000000000000000'
        '0000000000000000000000000000000000003c003d003e003f0000000000000000008c754e0384103d101f0000000000000d'
        '80000400040039000100000001102e0141002a0000000000000000a0df')


class Answers:
    """In place of a link: registers by function and address, and what was asked."""

    def __init__(self, registers: dict[tuple[int, int], int]) -> None:
        self.registers, self.asked = registers, []
        self.read_only = True

    def read(self, unit: int, function: int, start: int, count: int) -> list[int]:
        self.asked.append((unit, function, start, count))
        if not any((function, start + i) in self.registers for i in range(count)):
            raise Refused('exception 2')
        return [self.registers.get((function, start + i), 0) for i in range(count)]

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass


def battery(profile: str, registers: dict[tuple[int, int], int], unit: int) -> tuple[ModbusBattery, Answers]:
    link: Any = Answers(registers)
    params = ProfileParams(address='rtu:/dev/null', profile=profile, unit=unit)
    device = ModbusBattery(params, read_only=True, link=link)
    device.open()
    return device, link


def words(data: bytes, function: int = 3, start: int = 0) -> dict[tuple[int, int], int]:
    return {(function, start + i): int.from_bytes(data[2 * i:2 * i + 2], 'big') for i in range(len(data) // 2)}


def test_recorded_daly_answer():
    frame = bytes.fromhex(DALY)
    assert rtu_crc(frame[:-2]) == frame[-2:] and frame[2] == 124
    device, link = battery('daly_modbus', words(frame[3:-2]), 0xD2)
    reading = device.read(1.0)
    assert link.asked == [(0xD2, 3, 0, 62)]  # one read, as recorded
    assert (reading.voltage, reading.current, reading.soc) == pytest.approx((14.0, 3.0, 0.9))
    assert reading.cells[:4] == pytest.approx((4.127, 4.137, 4.147, 4.157))
    assert reading.temperatures[:4] == (20.0, 21.0, 22.0, 23.0)
    assert reading.charge == pytest.approx(345.6) and reading.mode is Mode.CHARGING
    assert (reading.cell_voltage_max, reading.cell_voltage_min) == pytest.approx((4.157, 4.127))


def test_pylontech_rt_serial_as_published():
    request = bytes.fromhex('0103200000084fcc')
    assert rtu_crc(request[:-2]) == request[-2:]
    answer = bytes.fromhex('010310413233313031353030303030303030318504')
    registers = words(answer[3:-2], start=0x2000) | words(bytes.fromhex(
        '14c8ff9c0cf80ce400fa00f0002a0063020c0000000001f403e8'), start=0x1016)
    device, link = battery('pylontech_rt', registers, 1)
    assert device.identify().serial == 'A231015000000001'
    reading = device.read(0.0)
    assert (1, 3, 0x1016, 13) in link.asked  # the published request 01 03 10 16 00 0d
    assert (reading.voltage, reading.current) == pytest.approx((53.2, -10.0))
    assert (reading.soc, reading.soh) == pytest.approx((0.42, 0.99))
    assert reading.max_charge_current == reading.max_discharge_current == pytest.approx(50.0)
    assert (reading.temperature, reading.temperature_min) == pytest.approx((25.0, 24.0))


def test_seplos_v3_alarms_are_active_when_zero():
    registers = {(4, 0x1000 + i): v for i, v in enumerate(
        [5320, 0xFC18, 5000, 0, 0, 500, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100, 80])}
    registers |= {(4, 0x1100 + i): 3325 for i in range(16)} | {(4, 0x1110 + i): 2981 for i in range(4)}
    registers |= {(4, 0x1359): 10000} | {(1, 0x1400 + i): 1 for i in range(0x40)}
    device, _ = battery('seplos_v3', registers, 0)
    device.identify()
    reading = device.read(0.0)
    assert reading.alarms == () and reading.current == pytest.approx(-10.0) and reading.charge_full == 100.0
    assert (reading.max_charge_current, reading.max_discharge_current) == (80.0, 100.0)
    assert reading.temperature == pytest.approx(24.95)
    registers[1, 0x1401] = 0
    assert [a.id for a in device.read(1.0).alarms] == ['seplos_v3.cell_overvoltage']
