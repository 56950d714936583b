"""Build a wheel of this ament_cmake package: CMake makes the interfaces, setuptools packs them with the rest.

With BESS_EDITABLE=1 only the metadata and entry points are made (for ``pip install -e .``): the
interfaces were installed by CMake before and the Python packages are used in place.
"""

import configparser
import os
import pathlib
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

HERE = pathlib.Path(__file__).parent.resolve()
PACKAGE = ET.parse(HERE / 'package.xml').getroot()
NAME, VERSION = PACKAGE.findtext('name'), PACKAGE.findtext('version')
EDITABLE = os.environ.get('BESS_EDITABLE') == '1'


def requirements(name: str) -> list[str]:
    """Requirements of a file in requirements/, without comments."""
    lines = (HERE / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [text for line in lines if (text := line.split('#')[0].strip())]


class CMakeInstall(build_ext):
    """Build the interfaces with CMake, install them into a staging folder, pack that with launch and site files.

    With BESS_INTERFACES_BUILD=FOLDER the interfaces come from a CMake build that is there already (`make setup`
    leaves one of these sources in build/interfaces): generating and compiling them is most of the work.
    """

    def run(self):
        """Run CMake and hand its tree to setuptools."""
        work = pathlib.Path(self.build_temp).resolve()
        stage = work / 'stage'
        shutil.rmtree(stage, ignore_errors=True)
        env = dict(os.environ)
        for variable in ('AMENT_PREFIX_PATH', 'CMAKE_PREFIX_PATH'):
            env[variable] = os.pathsep.join(p for p in (env.get(variable), sys.prefix) if p)
        env['PATH'] = os.pathsep.join((str(pathlib.Path(sys.executable).parent), env['PATH']))
        built = os.environ.get('BESS_INTERFACES_BUILD', '')
        if not built:
            built = str(work / 'cmake')
            subprocess.check_call(
                ['cmake', '-G', 'Ninja', '-S', str(HERE), '-B', built, '-DBESS_INTERFACES_ONLY=ON',
                 '-DBUILD_TESTING=OFF', '-DCMAKE_BUILD_TYPE=Release', f'-DCMAKE_INSTALL_PREFIX={stage}',
                 f'-DPython3_EXECUTABLE={sys.executable}'], env=env)
            subprocess.check_call(['cmake', '--build', built], env=env)
        subprocess.check_call(['cmake', '--install', built, '--prefix', str(stage)], env=env)
        site = next(stage.glob('lib/python3*/site-packages'))
        # Generated interfaces go to site-packages/bess; the written packages come through packages=.
        target = pathlib.Path(self.build_lib) / NAME
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(site / NAME, target, ignore=shutil.ignore_patterns('__pycache__', '*.c'))
        for folder in ('launch', 'config'):
            shutil.copytree(HERE / folder, stage / 'share' / NAME / folder,
                            ignore=shutil.ignore_patterns('__pycache__'))
        (stage / 'share' / NAME / 'docs').mkdir()
        shutil.copy(HERE / 'docs' / 'faults.yaml', stage / 'share' / NAME / 'docs')
        self.write_scripts(stage / 'lib' / NAME)
        data = []
        for folder, _, files in os.walk(stage):
            relative = pathlib.Path(folder).relative_to(stage)
            if not files or 'site-packages' in relative.parts or relative.parts[0] == 'include':
                continue
            # ament's set-up scripts name the folder of the build; a wheel needs none of them.
            data.append((str(relative), [os.path.join(folder, f) for f in files if not f.startswith('local_setup.')]))
        self.distribution.data_files = data

    @staticmethod
    def write_scripts(folder):
        """What `ros2 run` starts: ament's own would look up a distribution that the wheel lacks."""
        folder.mkdir(parents=True, exist_ok=True)
        config = configparser.ConfigParser()
        config.read(HERE / 'setup.cfg')
        for line in config['options.entry_points']['console_scripts'].strip().splitlines():
            name, target = (part.strip() for part in line.split('='))
            module, function = target.split(':')
            path = folder / name
            path.write_text(
                '#!/bin/sh\n'
                'exec "$(dirname "$(readlink -f "$0")")/../../bin/python" -c '
                f'"import sys; from {module} import {function}; sys.exit({function}())" "$@"\n')
            path.chmod(0o755)

    def get_outputs(self):
        """Nothing beyond what data_files and packages list."""
        return []


setup(
    name=NAME,
    version=VERSION,
    description=PACKAGE.findtext('description'),
    license='Apache-2.0',
    python_requires='>=3.11,<3.14',
    packages=find_packages(include=['bess_*']),
    package_data={'': ['*.yaml', '*.json', '*.css', '*.js']},
    extras_require={} if EDITABLE else {'gpio': requirements('gpio'), 'iec61850': requirements('iec61850'),
                                       'p1': requirements('p1')},
    install_requires=[] if EDITABLE else requirements('ros') + requirements('run'),
    ext_modules=[] if EDITABLE else [Extension(f'{NAME}._cmake', [])],  # makes it a platform wheel
    cmdclass={} if EDITABLE else {'build_ext': CMakeInstall},
    zip_safe=False,
)
