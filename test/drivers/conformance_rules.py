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

T = 'test/drivers/'
_IO, _BQ, _GPS, _P1 = T + 'test_io_nodes.py::', T + 'test_bq40z50.py::', T + 'test_gps.py::', T + 'test_p1.py::'
_SENSORS, _CELLS, _MMS = T + 'test_sensors.py::', T + 'test_cell_controller.py::', T + 'test_iec61850.py::'
_PULSE, _CAN, _PROTECTION = T + 'test_pulse.py::', T + 'test_can_bms.py::', 'test/protection/test_protection_nodes.py::'
_GATE = T + 'test_output_gate.py::test_never_on_without_a_live_lease'
NO_UNITS, NO_FRAMES = 'no units', 'nothing that could be damaged or cut'
KERNEL, TAKES_NONE = 'the kernel answers or fails, nothing is late', 'takes no power'
_FILES = {'normal': '', 'garbage': '', 'truncation': '', 'unplug': '', 'clock': '', 'slow': KERNEL,
          'wrong_unit': NO_UNITS, 'sign': '', 'lease': 'has no outputs', 'read_only': ''}
_PINS = {**_FILES, 'garbage': NO_FRAMES, 'truncation': NO_FRAMES, 'sign': 'no directions', 'lease': _GATE,
         'faults': _SENSORS + 'test_pins_are_read_counted_and_driven',
         'unknown': _SENSORS + 'test_read_only_drives_no_pin'}
_NO_SUM = 'the chip has no checksum and a read has no end: what cannot be is refused, ' + _SENSORS
_CHIP = {'normal': '', 'faults': 'the chip has no fault word', 'garbage': _NO_SUM + 'test_garbage_of_a_bme280',
         'truncation': _NO_SUM + 'test_garbage_of_a_bme280', 'unplug': '', 'clock': '', 'slow': T +
         'test_conformance_chips.py::test_a_measurement_that_does_not_end', 'wrong_unit': _SENSORS +
         'test_bme280_on_the_bus', 'unknown': _SENSORS + 'test_bme280_on_the_bus', 'sign': '',
         'lease': TAKES_NONE, 'read_only': ''}

#: what has no wire of bytes -> each check: '' = here (test_conformance_local.py), a test elsewhere, or why not
LOCAL: dict[str, dict[str, str]] = {
    'strato_pi': {**_FILES, 'faults': _SENSORS + 'test_strato_pi', 'unknown': _SENSORS + 'test_strato_pi',
                  'sign': 'no directions', 'lease': _GATE},
    'analog': {**_FILES, 'faults': _SENSORS + 'test_iio_and_thermistors',
               'unknown': _SENSORS + 'test_iio_and_thermistors'},
    'one_wire': {**_FILES, 'faults': _SENSORS + 'test_one_wire', 'unknown': _SENSORS + 'test_one_wire'},
    'cpu_temperature': {**_FILES, 'faults': _SENSORS + 'test_cpu_temperature',
                        'unknown': _SENSORS + 'test_cpu_temperature'},
    'gpio-gpiod': _PINS,
    'gpio-gpiozero': {**_PINS, 'unplug': 'its mock pins cannot be unplugged; with gpiod'},
    'pulse': {**_PINS, 'faults': 'a pin has no fault word',
              'sign': _PULSE + 'test_edges_of_two_pins_are_import_and_export',
              'unknown': _PULSE + 'test_edges_of_two_pins_are_import_and_export', 'lease': TAKES_NONE},
    'bme280': _CHIP,
    'bme680': {**_CHIP, 'unknown': _SENSORS + 'test_bme680_on_the_bus', 'wrong_unit': T +
               'test_conformance_chips.py::test_another_chip_is_named', 'sign': 'its simulated chip has one '
               'temperature; the formulas are those of the library'},
    'bq40z50': {'normal': '', 'faults': _BQ + 'test_every_protection_and_permanent_failure_has_a_name', 'garbage': '',
                'truncation': '', 'unplug': '', 'clock': '', 'slow': _BQ + 'test_reset_comes_back_sealed',
                'wrong_unit': 'the address is in the packet error code: ' + _BQ +
                'test_packet_error_codes_that_were_published', 'unknown': _BQ + 'test_capacity_in_energy_and_scales',
                'sign': '', 'lease': TAKES_NONE, 'read_only': ''},
}

#: drivers with test files of their own -> each check, as in LOCAL
ELSEWHERE: dict[str, dict[str, str]] = {
    'gps': {'normal': _GPS + 'test_receiver_on_a_line', 'faults': _GPS + 'test_receiver_on_a_line',
            'garbage': _GPS + 'test_silence_and_damage_on_a_line', 'truncation': _GPS + 'test_damage',
            'unplug': _GPS + 'test_unplugged', 'clock': _GPS + 'test_a_step_of_the_wall_clock_does_not_matter',
            'slow': 'it talks by itself; nobody asks', 'wrong_unit': NO_UNITS,
            'unknown': _GPS + 'test_without_a_fix_nothing_is_invented', 'sign': _GPS +
            'test_time_and_a_gga_of_another_second', 'lease': TAKES_NONE,
            'read_only': _GPS + 'test_nothing_is_ever_sent'},
    'p1': {'normal': _P1 + 'test_what_the_meter_says_arrives', 'faults': 'a telegram has no alarm bits',
           'garbage': _P1 + 'test_damage_is_never_a_reading_and_it_comes_back',
           'truncation': _P1 + 'test_damage_is_never_a_reading_and_it_comes_back',
           'unplug': _P1 + 'test_the_node_of_a_meter_that_is_unplugged_and_comes_back',
           'clock': _P1 + 'test_a_clock_step_does_not_matter', 'slow': 'it talks by itself; nobody asks',
           'wrong_unit': NO_UNITS, 'unknown': _P1 + 'test_an_empty_value_is_not_known',
           'sign': _P1 + 'test_what_the_meter_says_arrives', 'lease': TAKES_NONE,
           'read_only': _P1 + 'test_nothing_is_ever_sent'},
    'iec61850': {'normal': _MMS + 'test_a_battery_of_edition_2',
                 'faults': _MMS + 'test_each_alarm_is_a_named_fault_and_qualities_count',
                 'garbage': _MMS + 'test_a_bridge_that_misbehaves_gives_device_errors',
                 'truncation': _MMS + 'test_a_bridge_that_misbehaves_gives_device_errors',
                 'unplug': _MMS + 'test_node_survives_the_server', 'clock': _MMS + 'test_a_step_of_the_wall_clock',
                 'slow': _MMS + 'test_silence_ends_in_time_and_a_wrong_node_is_named',
                 'wrong_unit': _MMS + 'test_silence_ends_in_time_and_a_wrong_node_is_named',
                 'unknown': _MMS + 'test_what_is_needed_and_what_is_invalid',
                 'sign': _MMS + 'test_what_is_needed_and_what_is_invalid', 'lease': TAKES_NONE,
                 'read_only': _MMS + 'test_what_may_not_be_switched'},
    'cell_controller': {'normal': _CELLS + 'test_cells_are_measured_and_the_relay_closes',
                        'faults': _CELLS + 'test_a_cell_beyond_a_limit_opens_the_relay_and_is_a_fault',
                        'garbage': _CELLS + 'test_damage_is_no_reading_and_it_comes_back',
                        'truncation': _CELLS + 'test_damage_is_no_reading_and_it_comes_back',
                        'unplug': _CELLS + 'test_unplugged_and_plugged_in_again',
                        'clock': _CELLS + 'test_a_step_of_the_wall_clock_does_not_matter',
                        'slow': _CELLS + 'test_slow_and_late_answers',
                        'wrong_unit': _CELLS + 'test_fewer_modules_than_cells_is_no_reading',
                        'unknown': _CELLS + 'test_orders_sum_mismatch_and_unknown_temperature',
                        'sign': _CELLS + 'test_energy_is_counted',
                        'lease': 'the link to what is above is its lease: ' + _CELLS +
                        'test_lost_link_and_blind_front_end',
                        'read_only': _CELLS + 'test_read_only_drives_nothing'},
    'can_bms_server': {**dict.fromkeys(('normal', 'unknown', 'lease'),
                                       _CAN + 'test_an_inverter_sees_our_aggregate_as_a_can_battery'),
                       'faults': T + 'test_can_bms_codec.py::test_what_is_encoded_is_decoded',
                       **dict.fromkeys(('garbage', 'truncation', 'wrong_unit', 'unplug'),
                                       _CAN + 'test_the_server_survives_its_bus_and_foreign_frames'),
                       'slow': 'it talks by itself', 'clock': _CAN +
                       'test_the_server_survives_its_bus_and_foreign_frames',
                       'sign': T + 'test_can_bms_codec.py::test_what_is_encoded_is_decoded',
                       'read_only': 'it sends by nature and is not part of a battery that is only watched'},
    'watchdog': {'normal': _SENSORS + 'test_strato_watchdog', **dict.fromkeys(
        ('faults', 'garbage', 'truncation', 'slow', 'wrong_unit', 'unknown', 'sign', 'clock', 'read_only'),
        'it is only written to'), 'unplug': _SENSORS + 'test_strato_watchdog', 'lease': 'it is one itself: ' +
        _SENSORS + 'test_strato_watchdog'},
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
        if stand.role is Role.CLIMATE:
            return 'test/drivers/test_io_nodes.py'
        if stand.role is not Role.CONVERTER:
            return 'takes no power' if stand.role is not Role.IO else 'outputs: test/drivers/test_output_gate.py'
        return ''
    if check == 'faults':
        if profile is not None:
            return ('' if image or stand.transport == 'can' else 'with the image of this profile') if profile.faults \
                else 'the profile names no fault'
        if stand.role is not Role.BATTERY:
            if stand.name == 'sunspec_inverter-kaco':
                return 'test/drivers/test_sunspec_legacy_curves.py'
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
    lines += ['', '## Without a wire of bytes, and drivers with tests of their own', '',
              'Files of the kernel, pins and chips are tried by `test/drivers/test_conformance_local.py` ("here"), '
              'unplugged', 'at each step of a poll in turn; nodes that are drivers (`cell_controller`, '
              '`can_bms_server`) and the watchdogs', 'stand with the rest.', '',
              '| Driver | ' + ' | '.join(CHECKS) + ' |', '| --- ' * (len(CHECKS) + 1) + '|']
    for name, row in {**LOCAL, **ELSEWHERE}.items():
        lines.append(f'| `{name}` | ' + ' | '.join(shown(row[c]) for c in CHECKS) + ' |')
    lines += ['', 'Profiles of the tests (`test/drivers/profiles`) stand for roles without an installed one, and for '
              'the template', '`rhombus_res125`, which has no addresses.']
    return '\n'.join(lines) + '\n'


def shown(cell: str) -> str:
    """A cell of the table: here, the file of the test, or why not."""
    if cell == '':
        return 'here'
    words = [w.partition('::')[0].removeprefix(T) if '::' in w else w for w in cell.split()]
    return ' '.join(words)


def named_tests() -> list[str]:
    """Every test that a row names."""
    cells = [c for row in (*LOCAL.values(), *ELSEWHERE.values()) for c in row.values()]
    return [w for c in (*cells, *BITS.values()) for w in c.split() if '::' in w]


def own_nodes() -> set[str]:
    """Nodes of this room that are drivers without being a device class, and the watchdogs."""
    nodes = {n for n, e in plugins.available(plugins.NODES).items() if e.value.startswith('bess_drivers.')}
    return nodes | {'watchdog'}


def drivers() -> set[str]:
    """All driver types that are installed."""
    return set(plugins.available(plugins.DRIVERS))


if __name__ == '__main__':
    Path('docs/conformance.md').write_text(page())
