"""Compile what a simulation without ROS runs through: the pure modules with mypyc, the cells with the C compiler.

    python tools/build_native.py            # what `make native` runs; up to ten minutes, nothing the second time
    PYTHONPATH=build/native python ...      # uses it

The result is a copy of the rooms in `build/native` with compiled modules beside their sources. Sites do not need
it; `make bench` measures a simulated day with it and without, and compares the energies.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from native_source import enumerations, explicit, parameters

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / 'build' / 'native'
STAMP = 'native.stamp'
ROOMS = ('bess_core', 'bess_drivers', 'bess_virtual', 'bess_control', 'bess_telemetry', 'bess_sim', 'bench')
BESIDE = ('config', 'docs', 'launch', 'msg', 'srv')  # what modules look for beside the rooms
MODULES = {
    'bess_core': 'clock exchange faults leases ticker values',
    'bess_drivers': 'bus gate',
    'bess_virtual': 'aggregate aggregate_values allocation counters demand exact expected ledger member partition '
                    'partition_reading reasons shares statements unit zones',
    'bess_control': 'bounds grid_loop load_estimate manager modes/base modes/self_consumption proposals soc_limits '
                    'words',
    'bess_sim': 'cells chemistry grid inverter limit_watch lockstep plant plant_api plant_devices profiles',
    'bench': 'chain chain_batteries chain_control chain_devices',
}
DIRECT = ('-fno-semantic-interposition',)  # functions call each other directly; clang does so anyway
LEARN_FROM = {'chain': '0.2', 'graph': '0.02'}  # simulated h
#: Compiled in the tree, as `setup.py` of it.
SETUP = """from mypyc.build import mypycify
from setuptools import setup

setup(name='bess-native', packages=[], py_modules=[], ext_modules=mypycify(
    [*{files!r}, '--ignore-missing-imports', '--follow-imports=silent'], opt_level='2', group_name='bess_native'))
"""


def modules() -> list[str]:
    """Files to compile, relative to the tree."""
    return [f'{room}/{name}.py' for room, names in MODULES.items() for name in names.split()]


def fingerprint() -> str:
    """Hash of all that the result depends on."""
    import mypy.version

    digest = hashlib.sha256(f'{sys.version} {ROOT} {mypy.version.__version__}'.encode())
    for path in sorted([*Path(__file__).parent.glob('*native*.py'), *(ROOT / 'bess_sim').glob('*.c'),
                        *(p for room in ROOMS for p in (ROOT / room).rglob('*.py'))]):
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def compile_kernel(library: Path) -> None:
    """The C code of the cells as a shared library. Raises CalledProcessError, or OSError without a compiler."""
    compiler = shlex.split(os.environ.get('CC', 'cc'))
    subprocess.run([*compiler, '-O2', '-ffp-contract=off', '-shared', '-fPIC', '-Wall', '-Werror', '-o', str(library),
                    str(ROOT / 'bess_sim' / 'cell_kernel.c')], check=True)


def is_gcc() -> bool:
    """Whether extension modules are compiled by gcc. Raises OSError without a compiler."""
    compiler = shlex.split(os.environ.get('CC') or sysconfig.get_config_var('CC') or 'cc')
    macros = subprocess.run([*compiler, '-dM', '-E', '-x', 'c', os.devnull], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, check=False).stdout
    return '__GNUC__' in macros and '__clang__' not in macros


def run_python(tree: Path, *arguments: str, **environment: str) -> None:
    """Run Python in the tree. Raises CalledProcessError when it fails, and shows what it said."""
    result = subprocess.run([sys.executable, *arguments], cwd=tree, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, check=False,
                            env={**os.environ, **environment, 'PYTHONPATH': str(tree)})
    if result.returncode:
        print(result.stdout[-8000:], file=sys.stderr)
        raise subprocess.CalledProcessError(result.returncode, arguments)


def compile_modules(tree: Path, *flags: str) -> None:
    """All modules with these flags of the C compiler. Raises CalledProcessError."""
    added = {name: ' '.join([os.environ.get(name, ''), *flags]).strip() for name in ('CFLAGS', 'LDFLAGS')}
    run_python(tree, 'setup.py', '-q', 'build_ext', '--inplace', '--force', **added)


def build(tree: Path = TREE) -> None:
    """Make the tree anew. Raises CalledProcessError when something does not compile; its output is shown.

    gcc compiles twice: the second time it knows from a simulation with chain and graph which way a branch mostly goes.
    """
    made_from = fingerprint()  # of what is copied now: somebody may work on it meanwhile
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for room in ROOMS:
        shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns('__pycache__'))
    for name in BESIDE:
        (tree / name).symlink_to(ROOT / name)
    sources = {module: (tree / module).read_text(encoding='utf-8') for module in modules()}
    known, kept = enumerations(sources.values()), parameters(sources.values())
    for module, source in sources.items():
        (tree / module).write_text(explicit(source, known, kept), encoding='utf-8')
    compile_kernel(tree / 'bess_sim' / 'libcell_kernel.so')
    (tree / 'setup.py').write_text(SETUP.format(files=modules()))
    shutil.copy(ROOT / 'pyproject.toml', tree)
    if is_gcc():
        compile_modules(tree, *DIRECT, '-fprofile-generate', '-fprofile-update=single')
        print('native: compiled once, learning from a simulation, then once more ...', flush=True)
        for way, hours in LEARN_FROM.items():
            run_python(tree, '-m', 'bench.day_run', way, 'config/sites/home_demo.yaml', '--hours', hours)
        compile_modules(tree, *DIRECT, '-fprofile-use', '-fprofile-correction', '-Wno-missing-profile')
    else:
        compile_modules(tree)
    missing = [m for m in modules() if not list((tree / m).parent.glob(f'{Path(m).stem}.*.so'))]
    if missing:
        raise FileNotFoundError(f'not compiled: {", ".join(missing)}')
    (tree / STAMP).write_text(made_from)


def main() -> int:
    """Build it unless it is there already."""
    stamp = TREE / STAMP
    if stamp.exists() and stamp.read_text() == fingerprint():
        return 0
    print(f'native: compiling {len(modules())} modules, up to ten minutes ...', flush=True)
    build()
    print(f'native: built in {TREE.relative_to(ROOT)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
