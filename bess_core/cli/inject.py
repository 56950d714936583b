"""`bess inject`: faults for the simulated devices of a running site (never for real ones)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from .running import domain, running
from .session import CliError, add_command, add_json, load_plugin, nearest, print_json, seconds, text_table
from .up import default_state

EXAMPLES = """
  bess inject list                                     simulated devices and their active faults
  bess inject meter list                               faults that this device knows
  bess inject meter no_answer --for 10
  bess inject inverter_a late_answer --value 1.5
  bess inject meter clear                              all faults of a device; or clear NAME
  bess inject world cell_overvoltage --unit unit_a --index 3 --value 3.7 --for 60
`world` is the physics behind the devices; its --for counts simulated seconds.
"""
WORLD = 'world'


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, 'inject', 'inject faults into simulated devices', __doc__, EXAMPLES, run)
    parser.add_argument('device', metavar='DEVICE', help='simulated device, world, or list')
    parser.add_argument('fault', nargs='?', default='', metavar='FAULT', help='fault, clear, or list')
    parser.add_argument('name', nargs='?', default='', metavar='NAME', help='with clear: only this fault')
    parser.add_argument('--value', type=float, default=None, metavar='X',
                        help='strength; its unit depends on the fault (see `list`)')
    parser.add_argument('--for', dest='seconds', type=seconds, default=None, metavar='S',
                        help='until it goes by itself, s (default: until cleared)')
    parser.add_argument('--unit', default='', help='world: battery unit that is meant')
    parser.add_argument('--index', type=int, default=None, metavar='N', help='world: cell or sensor, from 0')
    parser.add_argument('--state', type=Path, default=None, metavar='DIR',
                        help='state folder of the site (default: the one site that runs simulated devices)')
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """0; 1 when refused or when there is no such device."""
    wrong = _wrong_use(args)
    if wrong:
        raise CliError(wrong, 2)
    control_class = load_plugin('bess.simulation', 'control')
    folder = find_folder(args.state)
    if args.device == 'list':
        return _list(control_class, folder, args.json)
    socket = folder / f'{args.device}.sock'
    if not socket.exists():
        close = nearest(args.device, _devices(folder))
        raise CliError(f'no simulated device {args.device!r} in {folder}; there is: {", ".join(close)}')
    try:
        with control_class(socket) as control:
            return _act(control, args)
    except RuntimeError as error:  # bess_sim.control_client.ControlError
        raise CliError(str(error)) from error


def _wrong_use(args: argparse.Namespace) -> str:
    acts = args.fault not in ('', 'list', 'clear')
    if args.device == 'list':
        return 'list takes no fault' if args.fault else ''
    if not args.fault:
        return f'say what to do with {args.device}: a fault, clear, or list'
    if args.name and args.fault != 'clear':
        return f'unexpected {args.name!r}'
    if not acts and (args.value is not None or args.seconds is not None):
        return '--value and --for belong to a fault'
    if args.device != WORLD and (args.unit or args.index is not None):
        return '--unit and --index belong to the device world'
    return ''


def find_folder(state: Path | None) -> Path:
    """Folder of the control sockets. Raises `CliError` when there is none, or several and none is named."""
    if state is not None:
        folder = state / 'sim'
        if not _devices(folder):
            raise CliError(f'no simulated devices in {folder}; is the site running with --state {state}?')
        return folder
    base = default_state('')
    usual = {f.parent for f in base.glob(f'*/sim/{WORLD}.sock')}
    noted = {Path(r.state) / 'sim' for r in running() if r.domain == domain()}
    found = sorted(f for f in usual | noted if _alive(f))
    if not found:
        raise CliError(f'no site with simulated devices runs with a state folder in {base}; '
                       'name its folder with --state')
    if len(found) > 1:
        raise CliError('several sites run simulated devices, choose one with --state: '
                       + ', '.join(str(f.parent) for f in found), 2)
    return found[0]


def _alive(folder: Path) -> bool:
    """Whether the bench of a folder still runs (its sockets stay behind when it is killed)."""
    import json

    try:
        pid = int(json.loads((folder / 'bench.json').read_text())['pid'])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _devices(folder: Path) -> list[str]:
    return sorted(f.stem for f in folder.glob('*.sock'))


def _act(control: Any, args: argparse.Namespace) -> int:
    if args.fault == 'list':
        return _list_one(control, args)
    if args.fault == 'clear':
        if args.device == WORLD and args.unit:
            control.command('clear', fault=args.name, unit=args.unit)
        else:
            control.clear(args.name)
        text = f'{args.device}: {args.name or "all faults"} cleared'
    else:
        place = {'unit': args.unit} if args.unit else {}
        if args.index is not None:
            place['index'] = args.index
        control.inject(args.fault, args.value, args.seconds, **place)
        until = f'for {args.seconds:g} s' if args.seconds is not None else 'until cleared'
        value = f', value {args.value:g}' if args.value is not None else ''
        text = f'{args.device}: {args.fault} {until}{value}'
    if args.json:
        print_json({'device': args.device, 'accepted': True, 'message': text})
    else:
        print(text)
    return 0


def known_faults(device: str) -> dict[str, str]:
    """Faults by name with what they do."""
    return dict(load_plugin('bess.simulation', 'world_faults' if device == WORLD else 'device_faults'))


def _list_one(control: Any, args: argparse.Namespace) -> int:
    known, active = known_faults(args.device), control.status()['faults']
    if args.json:
        print_json({'device': args.device, 'known': known, 'active': active})
        return 0
    for name, text in known.items():
        print(f'{name}: {text}')
    print('active: ' + ('; '.join(_fault_text(f) for f in active) or 'none'))
    return 0


def _list(control_class: Any, folder: Path, as_json: bool) -> int:
    states: dict[str, Any] = {}
    for device in _devices(folder):
        try:
            with control_class(folder / f'{device}.sock') as control:
                states[device] = control.status()
        except RuntimeError as error:
            states[device] = {'error': str(error), 'faults': []}
    if as_json:
        print_json(states)
    else:
        print(text_table(['device', 'kind', 'address', 'active faults'], [
            [device, s.get('kind', 'physics' if device == WORLD else '-'), s.get('address', '-'),
             s.get('error') or '; '.join(_fault_text(f) for f in s['faults']) or 'none']
            for device, s in states.items()]))
    return 1 if any('error' in s for s in states.values()) else 0


def _fault_text(fault: dict[str, Any]) -> str:
    name = str(fault.get('fault') or fault.get('name'))
    place = f' {fault["unit"]}[{fault["index"]}]' if fault.get('unit') else ''
    value, left = fault.get('value'), fault.get('remaining_s')
    return (name + place + (f' value {value:g}' if isinstance(value, (int, float)) else '')
            + (f', {left:.0f} s left' if isinstance(left, (int, float)) else ''))
