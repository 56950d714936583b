"""Build a wheel of this ament_cmake package: CMake does the work, setuptools packs its install tree.

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
    """Configure, build and install with CMake into a staging folder; pack that."""

    def run(self):
        """Run CMake and hand its tree to setuptools."""
        work = pathlib.Path(self.build_temp).resolve()
        stage = work / 'stage'
        shutil.rmtree(stage, ignore_errors=True)
        env = dict(os.environ)
        for variable in ('AMENT_PREFIX_PATH', 'CMAKE_PREFIX_PATH'):
            env[variable] = os.pathsep.join(p for p in (env.get(variable), sys.prefix) if p)
        env['PATH'] = os.pathsep.join((str(pathlib.Path(sys.executable).parent), env['PATH']))
        subprocess.check_call(
            ['cmake', '-G', 'Ninja', '-S', str(HERE), '-B', str(work / 'cmake'), '-DBUILD_TESTING=OFF',
             '-DCMAKE_BUILD_TYPE=Release', f'-DCMAKE_INSTALL_PREFIX={stage}',
             f'-DPython3_EXECUTABLE={sys.executable}'], env=env)
        subprocess.check_call(['cmake', '--build', str(work / 'cmake'), '--target', 'install'], env=env)
        site = next(stage.glob('lib/python3*/site-packages'))
        # Generated interfaces go to site-packages/bess; the written packages come through packages=.
        target = pathlib.Path(self.build_lib) / NAME
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(site / NAME, target, ignore=shutil.ignore_patterns('__pycache__', '*.c'))
        self.relocate_scripts(stage / 'lib' / NAME)
        data = []
        for folder, _, files in os.walk(stage):
            relative = pathlib.Path(folder).relative_to(stage)
            if not files or 'site-packages' in relative.parts or relative.parts[0] == 'include':
                continue
            data.append((str(relative), [os.path.join(folder, f) for f in files]))
        self.distribution.data_files = data

    @staticmethod
    def relocate_scripts(folder):
        """Replace ament's scripts (they look up a distribution that the wheel lacks) by relocatable ones."""
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
