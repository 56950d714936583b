"""Import rules between rooms: imports go down only, and pure modules never import rclpy."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    'bess_core': set(),
    'bess_drivers': {'bess_core'},
    'bess_virtual': {'bess_core', 'bess_drivers'},
    'bess_control': {'bess_core', 'bess_virtual'},
    'bess_telemetry': {'bess_core'},
    'bess_sim': {'bess_core'},
}
#: Top-level modules of ROS: only *_node.py and bess_core may import them.
ROS = {'rclpy', 'bess', 'std_msgs', 'sensor_msgs', 'diagnostic_msgs', 'lifecycle_msgs', 'std_srvs',
       'builtin_interfaces', 'rcl_interfaces', 'rosgraph_msgs'}
#: What must never be imported by our own code: GPL libraries, launch machinery outside launch/.
NEVER = {'pyiec61850', 'launch', 'launch_ros', 'ros2cli'}
#: GPL libraries, and the programs that use them: they and the rooms do not import each other.
GPL = {'pyiec61850', 'bess_iec61850_bridge'}
GPL_PROGRAMS = ('iec61850_bridge',)
OTHERS = ('bench', 'examples', 'launch', 'test', 'tools')


def imports(tree: ast.AST, room: str) -> list[tuple[int, str]]:
    """(line, module) of every import, also inside functions; relative ones as if from the top of the room.

    ``from x import y`` counts as x and, as y may be a module, as x.y.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = '.'.join(part for part in ((room if node.level else ''), node.module) if part)
            found += [(node.lineno, name) for name in (module, *(f'{module}.{alias.name}' for alias in node.names))]
    return found


def check(room: str, path: Path, root: Path = ROOT) -> list[str]:
    """What breaks the rules in one file of the tree at `root`."""
    problems = []
    may_ros = room == 'bess_core' or path.name.endswith('_node.py')
    for line, module in imports(ast.parse(path.read_text(encoding='utf-8')), room):
        top = module.split('.')[0]
        where = f'{path.relative_to(root)}:{line}'
        if top in ALLOWED and top != room and top not in ALLOWED[room]:
            problems.append(f'{where}: {room} must not import {top}')
        if top in ROS and not may_ros:
            problems.append(f'{where}: a pure module must not import {top} (only *_node.py may)')
        if top in NEVER | GPL:
            problems.append(f'{where}: {top} must not be imported here')
        if room in ALLOWED and module.endswith('_node') and not may_ros:
            problems.append(f'{where}: a pure module must not import {module}')
    return list(dict.fromkeys(problems))


def check_tree(root: Path) -> list[str]:
    """What breaks the rules in the rooms of a tree; a room that is not there is a broken rule too."""
    problems = [f'{room}: no such room' for room in ALLOWED if not (root / room).is_dir()]
    for room in ALLOWED:
        for file in sorted((root / room).rglob('*.py')):
            problems += check(room, file, root)
    for folder in (*OTHERS, *GPL_PROGRAMS):
        ours = ALLOWED.keys() | {'bess'} if folder in GPL_PROGRAMS else GPL
        for file in sorted((root / folder).rglob('*.py')):
            found = imports(ast.parse(file.read_text(encoding='utf-8')), folder)
            problems += [f'{file.relative_to(root)}:{line}: {module} must not be imported here: GPL and the rest are '
                         f'apart' for line, module in found if module.split('.')[0] in ours]
    return problems


def main(root: Path = ROOT) -> int:
    """Exit code 1 with one line per broken rule."""
    problems = check_tree(root)
    print('\n'.join(problems) or f'rooms: {len(ALLOWED)} rooms, imports go down only')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
