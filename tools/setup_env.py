"""Set up `.venv`: pinned packages from PyPI, the generated interfaces, this checkout in place.

    python3 tools/setup_env.py            # what `make setup` runs
    python3 tools/setup_env.py --check    # exit code 0 when nothing is to be done

Each step has a stamp with a hash of what it depends on, written when the step is through: a second
run does nothing, and a run after an interrupted one does the rest. An environment of another Python,
or one that was moved, is made anew. On a machine with a sourced ROS 2 `colcon build` needs none of
this; the environment made here is then one of its own, without that ROS.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
BUILD = ROOT / 'build' / 'interfaces'
LOCK = ROOT / 'build' / 'setup.lock'
SUPPORTED = ((3, 11), (3, 12), (3, 13))
GENERATING = ('ros', 'build')  # what the interfaces are generated and compiled with
REQUIREMENTS = (*GENERATING, 'run', 'dev')
PIP = 'pip>=26,<27'
#: What a sourced ROS 2 or an outer process may have set; none of it may reach the environment made here.
FOREIGN = ('AMENT_PREFIX_PATH', 'CMAKE_PREFIX_PATH', 'COLCON_PREFIX_PATH', 'LD_LIBRARY_PATH', 'PYTHONPATH',
           'PYTHONHOME', '_ROS_WHEELS_BOOTSTRAP_COMPLETE')


class Step(NamedTuple):
    """One step: done when its stamp holds `fingerprint`."""

    name: str
    fingerprint: str
    do: Callable[[], None]

    @property
    def stamp(self) -> Path:
        """File that holds the fingerprint with which the step was done."""
        return VENV / f'bess-{self.name}.stamp'

    @property
    def done(self) -> bool:
        """Whether the step was done for these inputs."""
        return self.stamp.exists() and self.stamp.read_text() == self.fingerprint


def fingerprint(paths: Iterable[Path], extra: str = '') -> str:
    """Hash over names and contents of files."""
    digest = hashlib.sha256(extra.encode())
    for path in sorted(paths):
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def interface_files() -> list[Path]:
    """Messages and services."""
    return sorted([*ROOT.glob('msg/*.msg'), *ROOT.glob('srv/*.srv')])


def generators() -> str:
    """Hash of the packages that generate and compile the interfaces, and of the Python they are for."""
    return fingerprint([ROOT / 'requirements' / f'{n}.txt' for n in GENERATING], f'{sys.version} {ROOT}')


def steps() -> list[list[list[Step]]]:
    """All steps: stages in order, of each stage lists that go on at the same time.

    Interfaces take two minutes of computing, the other packages one of waiting for the network.
    What was installed into other packages is installed again.
    """
    pinned = fingerprint([ROOT / 'requirements' / f'{n}.txt' for n in REQUIREMENTS], f'{sys.version} {ROOT}')
    generated = fingerprint([*interface_files(), *ROOT.glob('cmake/*.cmake'), *ROOT.glob('cmake/*/*.py'),
                             ROOT / 'CMakeLists.txt', ROOT / 'package.xml'], generators())
    metadata = fingerprint([ROOT / f for f in ('setup.py', 'setup.cfg', 'pyproject.toml', 'package.xml')], pinned)
    bridge = fingerprint([ROOT / 'requirements' / 'iec61850.txt', *ROOT.glob('iec61850_bridge/py*'),
                          *ROOT.glob('iec61850_bridge/*.py')], pinned)
    return [[[Step('generators', generators(), generator_packages)]],
            [[Step('interfaces', generated, interfaces)],
             [Step('packages', pinned, packages), Step('iec61850', bridge, iec61850),
              Step('p1', fingerprint([ROOT / 'requirements' / 'p1.txt'], pinned), p1)]],
            [[Step('checkout', metadata, checkout)]]]


def run(command: list[str], **env: str) -> None:
    """Run a command; end with its output when it fails."""
    outer = {k: v for k, v in os.environ.items() if k not in FOREIGN}
    result = subprocess.run(command, cwd=ROOT, env={**outer, **env}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if result.returncode:
        print(result.stdout[-8000:], file=sys.stderr)
        sys.exit(f'{" ".join(command[:4])} ... failed with code {result.returncode}')


def optional(what: str, *installs: list[str]) -> None:
    """An optional extra, each list being words for pip; where one fails its tests are skipped, and that is said."""
    for words in installs:
        result = subprocess.run([str(PYTHON), '-m', 'pip', 'install', '-q', '--disable-pip-version-check', *words],
                                cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                                env={k: v for k, v in os.environ.items() if k not in FOREIGN})
        if result.returncode:
            print(f'set-up: no {what} here, its tests will be skipped: {result.stdout.strip()[-300:]}')
            return


def iec61850() -> None:
    """IEC 61850 batteries, where there are wheels for this machine."""
    optional('IEC 61850', ['--only-binary', ':all:', '-r', 'requirements/iec61850.txt'],
             ['--no-deps', '--no-build-isolation', '-e', './iec61850_bridge'])


def p1() -> None:
    """P1 smart meters."""
    optional('P1 library', ['-r', 'requirements/p1.txt'])


def usable() -> bool:
    """Whether `.venv` is whole, was made here, and for this Python."""
    try:
        config = dict(line.split(' = ', 1) for line in (VENV / 'pyvenv.cfg').read_text().splitlines() if ' = ' in line)
    except OSError:
        return False
    here = config.get('command', '').endswith(f' {VENV}')  # scripts in bin/ name the folder they were made for
    same = config.get('version') == '.'.join(map(str, sys.version_info[:3]))
    # pip comes last, so that a creation that was interrupted lacks it.
    return here and same and PYTHON.exists() and (VENV / 'bin' / 'pip').exists()


def install(names: Iterable[str]) -> None:
    """Pinned packages of these requirement files."""
    wanted = [word for n in names for word in ('-r', f'requirements/{n}.txt')]
    run([str(PYTHON), '-m', 'pip', 'install', '-q', '--disable-pip-version-check', *wanted])


def generator_packages() -> None:
    """Virtual environment with what the interfaces need."""
    if not usable():
        base = getattr(sys, '_base_executable', sys.executable)  # not the environment that is cleared
        run([base, '-m', 'venv', '--clear', str(VENV)])
    # The one that comes with Python looks at each file of each version there ever was, twice as slow.
    run([str(PYTHON), '-m', 'pip', 'install', '-q', '--disable-pip-version-check', PIP])
    install(GENERATING)


def packages() -> None:
    """All pinned packages."""
    install(REQUIREMENTS)


def interfaces() -> None:
    """Messages and services through the genuine rosidl pipeline, installed into the environment."""
    # CMake and rosidl keep what they once made: other packages or a file that is gone start afresh.
    pinned, names = generators(), {path.name for path in interface_files()}
    marker = BUILD / 'bess-tree.stamp'
    before = marker.read_text().split() if marker.exists() else ['']
    if before[0] != pinned or not names.issuperset(before[1:]):
        shutil.rmtree(BUILD, ignore_errors=True)
        for generated in VENV.glob('lib/python3*/site-packages/bess'):
            shutil.rmtree(generated)
    BUILD.mkdir(parents=True, exist_ok=True)
    marker.write_text('\n'.join([pinned, *sorted(names)]))
    env = {'PATH': f'{VENV / "bin"}{os.pathsep}{os.environ["PATH"]}', 'AMENT_PREFIX_PATH': str(VENV),
           'CMAKE_PREFIX_PATH': str(VENV)}
    run(['cmake', '-G', 'Ninja', '-S', '.', '-B', str(BUILD), '-DBESS_INTERFACES_ONLY=ON', '-DBUILD_TESTING=OFF',
         '-DCMAKE_BUILD_TYPE=Release', f'-DCMAKE_INSTALL_PREFIX={VENV}', f'-DPython3_EXECUTABLE={PYTHON}'], **env)
    jobs = str(os.cpu_count() or 1)  # ninja's own choice is two more, which only share the caches
    run(['cmake', '--build', str(BUILD), '--target', 'install', '--parallel', jobs], **env)
    # rosidl leaves metadata named as our distribution; with it, pip would take the generated module away.
    for leftover in VENV.glob('lib/python3*/site-packages/bess-*.egg-info'):
        shutil.rmtree(leftover)


def checkout() -> None:
    """This checkout in place: entry points and `.venv/bin/bess`."""
    run([str(PYTHON), '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '--no-deps',
         '--no-build-isolation', '-e', '.'], BESS_EDITABLE='1')


def work(several: Iterable[Step]) -> None:
    """Do these in order, as far as they are to be done."""
    for step in several:
        if not step.done:
            print(f'set-up: {step.name} ...', flush=True)
            step.stamp.unlink(missing_ok=True)
            step.do()
            step.stamp.write_text(step.fingerprint)


def main() -> int:
    """Do what is to be done."""
    if sys.version_info[:2] not in SUPPORTED:
        names = [f'python{major}.{minor}' for major, minor in SUPPORTED]
        for other in filter(None, map(shutil.which, names)):
            os.execv(other, [other, *sys.argv])
        sys.exit(f'Python {sys.version.split()[0]} is not supported and none of {", ".join(names)} is here; '
                 'make PYTHON=/path/to/python3.11 ...')
    if '--check' in sys.argv:
        missing = [step.name for stage in steps() for several in stage for step in several if not step.done]
        print('set up' if not missing else f'to be done: {", ".join(missing)}')
        return 1 if missing else 0
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two `make` at once: the second one waits and finds it done
        for stage in steps():
            with ThreadPoolExecutor(len(stage)) as pool:
                for going in [pool.submit(work, several) for several in stage]:
                    going.result()
    return 0


if __name__ == '__main__':
    sys.exit(main())
