"""Set up `.venv`: pinned packages from PyPI, the generated interfaces, this checkout in place.

    python3 tools/setup_env.py            # what `make setup` runs
    python3 tools/setup_env.py --check    # exit code 0 when nothing is to be done

Each step has a stamp with a hash of what it depends on, so that a second run does nothing. On a
machine with a sourced ROS 2 (ROS_DISTRO is set) use `colcon build` instead; this script is for plain Linux.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
SUPPORTED = ((3, 11), (3, 12), (3, 13))
REQUIREMENTS = ('run', 'build', 'dev')


def fingerprint(paths: Iterable[Path], extra: str = '') -> str:
    """Hash over names and contents of files."""
    digest = hashlib.sha256(extra.encode())
    for path in sorted(paths):
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def steps() -> list[tuple[str, str]]:
    """(name, fingerprint) of each step, in order."""
    requirements = [ROOT / 'requirements' / f'{n}.txt' for n in REQUIREMENTS]
    interfaces = [*ROOT.glob('msg/*.msg'), *ROOT.glob('srv/*.srv'), *ROOT.glob('cmake/*'),
                  ROOT / 'CMakeLists.txt', ROOT / 'package.xml']
    metadata = [ROOT / f for f in ('setup.py', 'setup.cfg', 'pyproject.toml', 'package.xml')]
    packages = fingerprint(requirements, sys.version)
    generated = fingerprint(interfaces, packages)
    return [('packages', packages), ('interfaces', generated), ('checkout', fingerprint(metadata, generated + str(ROOT)))]


def stamp(name: str) -> Path:
    """File that holds the fingerprint of a step that was done."""
    return VENV / f'bess-{name}.stamp'


def done(name: str, print_: str) -> bool:
    """Whether a step was done for these inputs."""
    return stamp(name).exists() and stamp(name).read_text() == print_


def run(command: list[str], **env: str) -> None:
    """Run a command; end with its output when it fails."""
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, text=True,  # noqa: S603
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if result.returncode:
        print(result.stdout[-8000:], file=sys.stderr)
        sys.exit(f'{" ".join(command[:4])} ... failed with code {result.returncode}')


def packages() -> None:
    """Virtual environment with all pinned packages."""
    if not PYTHON.exists():
        run([sys.executable, '-m', 'venv', str(VENV)])
    wanted = [word for n in REQUIREMENTS for word in ('-r', f'requirements/{n}.txt')]
    # One resolver run could not satisfy empy (rclpy wants a newer one than the generators can use).
    run([str(PYTHON), '-m', 'pip', 'install', '-q', '--disable-pip-version-check', *wanted])


def interfaces() -> None:
    """Messages and services through the genuine rosidl pipeline, installed into the environment."""
    build = ROOT / 'build' / 'interfaces'
    env = {'PATH': f'{VENV / "bin"}{os.pathsep}{os.environ["PATH"]}', 'AMENT_PREFIX_PATH': str(VENV),
           'CMAKE_PREFIX_PATH': str(VENV)}
    if build.exists() and str(ROOT) not in (build / 'CMakeCache.txt').read_text(errors='replace') \
            if (build / 'CMakeCache.txt').exists() else False:
        shutil.rmtree(build)
    run(['cmake', '-G', 'Ninja', '-S', '.', '-B', str(build), '-DBESS_INTERFACES_ONLY=ON', '-DBUILD_TESTING=OFF',
         '-DCMAKE_BUILD_TYPE=Release', f'-DCMAKE_INSTALL_PREFIX={VENV}', f'-DPython3_EXECUTABLE={PYTHON}'], **env)
    run(['cmake', '--build', str(build), '--target', 'install'], **env)
    # rosidl leaves metadata named as our distribution; with it, pip would take the generated module away.
    for leftover in VENV.glob('lib/python3*/site-packages/bess-*.egg-info'):
        shutil.rmtree(leftover)


def checkout() -> None:
    """This checkout in place: entry points and `.venv/bin/bess`."""
    run([str(PYTHON), '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '--no-deps',
         '--no-build-isolation', '-e', '.'], BESS_EDITABLE='1')


def main() -> int:
    """Do what is to be done."""
    if sys.version_info[:2] not in SUPPORTED:
        names = ', '.join('.'.join(map(str, v)) for v in SUPPORTED)
        sys.exit(f'Python {sys.version.split()[0]} is not supported; make PYTHON=python3.11 ... (supported: {names})')
    todo = [name for name, print_ in steps() if not done(name, print_)]
    if '--check' in sys.argv:
        print('set up' if not todo else f'to be done: {", ".join(todo)}')
        return 1 if todo else 0
    for name, print_ in steps():
        if name in todo:
            print(f'set-up: {name} ...', flush=True)
            globals()[name]()
            stamp(name).write_text(print_)
    return 0


if __name__ == '__main__':
    sys.exit(main())
