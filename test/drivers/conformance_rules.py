"""Which check applies to which stand, and why one does not: the table of docs/conformance.md."""

from __future__ import annotations

from pathlib import Path

from conformance_stands import STANDS, Stand

from bess_core import plugins
from bess_drivers.device import Role
from bess_drivers.profiles import load_profile

CHECKS = {
    'normal': 'opens, identifies, reads; the whole message of the role is filled with numbers or NaN',
    'faults': 'each fault that a profile or protocol names, by its bit or condition',
    'garbage': 'a byte of each answer is inverted: an error, never a value; then it recovers',
    'truncation': 'answers stop half way: an error, never a value; then it recovers',
    'unplug': 'unplugged while an answer is awaited, and plugged in again',
    'clock': 'the wall clock jumps by years in both directions while it is polled',
    'slow': 'slow answers are waited for; late ones are an error and never taken for the next answer',
    'wrong_unit': 'answers of another unit are not taken',
    'unknown': 'a "not implemented" value becomes NaN, not a number',
    'sign': 'charging, import and consuming are positive, the opposite negative',
    'lease': 'an order is followed until its lease ends, then zero is ordered and all is quiet',
    'read_only': 'with `read_only` nothing reaches the device but what reading sends',
}

LINE = ('garbage', 'truncation', 'unplug', 'clock', 'slow', 'wrong_unit')  # of the line, not of the registers

#: drivers without a wire on which these checks have a meaning -> the file that proves them
ELSEWHERE = {
    'gpio': ('lines of this machine: no frames, no units', 'test/drivers/test_io_nodes.py'),
    'strato_pi': ('files of the kernel: no frames, no units', 'test/drivers/test_sensors.py'),
    'analog': ('files of the kernel: no frames, no units', 'test/drivers/test_sensors.py'),
    'one_wire': ('files of the kernel: no frames, no units', 'test/drivers/test_sensors.py'),
    'cpu_temperature': ('files of the kernel: no frames, no units', 'test/drivers/test_sensors.py'),
    'bme280': ('a chip on I2C, read only', 'test/drivers/test_sensors.py'),
    'bme680': ('a chip on I2C, read only', 'test/drivers/test_sensors.py'),
    'bq40z50': ('a chip on SMBus with a simulated chip of its own', 'test/drivers/test_bq40z50.py'),
    'gps': ('a receiver that only talks (NMEA)', 'test/drivers/test_gps.py'),
    'p1': ('a meter that only talks (P1), with a simulated meter on a pty and on TCP', 'test/drivers/test_p1.py'),
    'pulse': ('a pin that is only read', 'test/drivers/test_pulse.py'),
    'iec61850': ('MMS, spoken by a bridge process', 'test/drivers/test_iec61850.py'),
    'can_meter': ('the class of can_battery with another message', 'test/drivers/test_can_profile.py'),
    'modbus_climate': ('no installed profile of this role', 'test/drivers/test_profile_device.py'),
}

#: where each bit of a protocol without profile is set in the simulated device and read over its wire
EACH_BMS = 'test/drivers/test_fault_bits_wire.py::test_each_bit_of_a_bms_is_a_named_fault'
EACH_SUNSPEC = 'test/drivers/test_fault_bits_wire.py::test_each_bit_of_sunspec_is_a_named_fault'
BITS = {**dict.fromkeys(('jbd', 'daly', 'jk', 'jk_pb', 'pylontech', 'seplos', 'jbd_up16s', 'can_bms'), EACH_BMS),
        **dict.fromkeys(('sunspec_battery', 'sunspec_inverter', 'sunspec_meter'), EACH_SUNSPEC)}


def absent(stand: Stand, check: str) -> str:
    """Why a check does not apply to a stand; '' = it applies."""
    image, profile = stand.name.endswith('-image'), load_profile(stand.profile) if stand.profile else None
    if image and check in LINE and any(s.name == f'{stand.profile}-layout' for s in STANDS):
        return 'with the layout'
    if check == 'lease':
        if stand.role is not Role.CONVERTER:
            return 'takes no power' if stand.role is not Role.IO else 'outputs: test/drivers/test_output_gate.py'
        return ''
    if check == 'faults':
        if profile is not None:
            return ('' if image or stand.transport == 'can' else 'with the image of this profile') if profile.faults \
                else 'the profile names no fault'
        if stand.role is not Role.BATTERY:
            sunspec = EACH_SUNSPEC.partition('::')[0]
            return {'sunspec_inverter': sunspec, 'sunspec_meter': sunspec,
                    'carlo_gavazzi': 'the meter has no fault word',
                    'sonnen': 'test/drivers/test_sonnen.py'}[stand.driver]
        return 'test/drivers/test_sonnen.py' if stand.driver == 'sonnen_battery' else ''
    if check == 'unknown':
        if stand.name in ('sunspec_inverter-mesa_pcs', 'sunspec_inverter-kaco'):
            return 'with SunSpec 7xx'
        if stand.driver in ('sunspec_battery', 'sunspec_meter', 'sunspec_inverter'):
            return ''
        if profile is not None and stand.transport == 'modbus':
            if not image:
                return 'with the image of this profile'
            return '' if any(p.keys.not_implemented for p in profile.points.values()) else \
                'the document names no such value'
        return {'carlo_gavazzi': 'test/drivers/test_carlo_gavazzi.py', 'can_bms': 'frames are left out instead: '
                'test/drivers/test_can_bms_codec.py'}.get(stand.driver, 'the protocol has no such value')
    if check == 'garbage' and stand.transport == 'can':
        return 'the CAN controller checks each frame and drops damaged ones'
    if check == 'slow' and stand.transport == 'can':
        return 'it talks by itself; nobody asks'
    if check == 'wrong_unit' and stand.transport == 'http':
        return 'HTTP has no unit ids'
    if check == 'sign':
        if stand.name == 'trumpf_ac3025-layout':
            return 'its actual values are not public'
        if stand.role is Role.IO:
            return 'no directions'
        if profile is not None and image and not any(p.keys.positive for p in profile.points.values()):
            return 'the profile has no directed value that is read'
    return ''


def page() -> str:
    """docs/conformance.md."""
    lines = ['# Conformance of the drivers', '',
             'Made by `python test/drivers/conformance_rules.py`; `test/drivers/test_conformance.py` runs it. Every '
             'driver', 'type and every profile in `config/devices` is tried with a simulated device over its real '
             'protocol (sockets,', 'ptys, UDP multicast in place of a CAN adapter, HTTP). An "image" holds what the '
             'profile says: it shows how the', 'driver behaves, not that the profile is right; that is in '
             '[drivers.md](drivers.md).', '', '| Check | What |', '| --- | --- |']
    lines += [f'| {name} | {what} |' for name, what in CHECKS.items()]
    lines += ['', '| Driver and device | Transport | Checks | Not, because |', '| --- | --- | --- | --- |']
    for stand in STANDS:
        why = {c: absent(stand, c) for c in CHECKS}
        done = ', '.join(c for c in CHECKS if not why[c])
        reasons = '; '.join(f'{c}: {w}' for c, w in why.items() if w)
        done = 'all' if not reasons else done
        lines.append(f'| `{stand.driver}` {stand.name} ({stand.device}) | {stand.transport} | {done} | {reasons} |')
    lines += ['', 'Single bits: of ' + ', '.join(f'`{n}`' for n in BITS) + ' every alarm bit is set in the simulated '
              'device, one by one, and read', 'by the driver over the wire: `test/drivers/test_fault_bits_wire.py`.']
    lines += ['', '## Drivers that are proven elsewhere', '', '| Driver | Why | Where |', '| --- | --- | --- |']
    lines += [f'| `{name}` | {why} | `{where}` |' for name, (why, where) in ELSEWHERE.items()]
    lines += ['', 'Templates (`rhombus_res125`) have no addresses; one extended with addresses is tried in '
              '`test/drivers/test_device_profiles.py`.']
    return '\n'.join(lines) + '\n'


def drivers() -> set[str]:
    """All driver types that are installed."""
    return set(plugins.available(plugins.DRIVERS))


if __name__ == '__main__':
    Path('docs/conformance.md').write_text(page())
