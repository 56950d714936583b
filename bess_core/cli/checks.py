"""Checks of this machine for `bess doctor`. Each returns one `Finding`."""

from __future__ import annotations

import ctypes
import errno
import grp
import importlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROUND_TRIP_S = 5.0
DISK_FAIL_MB, DISK_WARN_MB = 200.0, 2000.0
SHM_WARN_MB = 64.0
FILES_FAIL, FILES_WARN = 256, 1024
LATE_OK_MS, LATE_BAD_MS = 5.0, 50.0
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


@dataclass(frozen=True)
class Finding:
    """Outcome of one check: OK, WARN or FAIL, and what to do about it."""

    level: str
    name: str
    text: str
    advice: str = ''


def ok(name: str, text: str) -> Finding:
    """All is well."""
    return Finding('OK', name, text)


def warn(name: str, text: str, advice: str) -> Finding:
    """Works, but somebody should look."""
    return Finding('WARN', name, text, advice)


def fail(name: str, text: str, advice: str) -> Finding:
    """Cannot work."""
    return Finding('FAIL', name, text, advice)


def guarded(step: Callable[[], Finding]) -> Finding:
    """Run a check; one that breaks is a finding too."""
    try:
        return step()
    except Exception as error:  # noqa: BLE001 - reported as a finding: it must not hide the other checks
        name = getattr(step, '__name__', 'check').replace('_', ' ').strip('<>')
        return fail(name, f'the check itself failed: {type(error).__name__}: {error}', 'report this')


# -- Python and ROS ------------------------------------------------------------------------------


def python_version() -> Finding:
    """3.11 or newer."""
    version = '.'.join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):
        return fail('python', version, 'install Python 3.11 or newer')
    return ok('python', f'{version} at {sys.executable}')


def ros_import() -> Finding:
    """rclpy can be imported."""
    try:
        importlib.import_module('rclpy')
    except ImportError as error:
        return fail('rclpy', f'cannot be imported: {error}', 'pip install the ROS wheels of requirements/, or '
                    'source /opt/ros/jazzy/setup.bash')
    from importlib.metadata import PackageNotFoundError, version

    for package in ('ros-jazzy-rclpy', 'ros-rclpy', 'rclpy'):
        try:
            return ok('rclpy', f'{version(package)} ({package})')
        except PackageNotFoundError:
            continue
    return ok('rclpy', 'found')


def interfaces() -> Finding:
    """The generated messages and services can be imported."""
    try:
        messages, services = importlib.import_module('bess.msg'), importlib.import_module('bess.srv')
    except ImportError as error:
        return fail('interfaces', f'bess.msg cannot be imported: {error}',
                    'pip install . (or colcon build) generates them')
    counts = [sum(n[:1].isupper() and '_' not in n for n in dir(m)) for m in (messages, services)]
    return ok('interfaces', f'{counts[0]} messages, {counts[1]} services')


def field_checks() -> Finding:
    """A wrong Python type in a message field is refused instead of sent as about zero."""
    from std_msgs.msg import Float64

    try:
        Float64(data=1)
    except AssertionError:
        return ok('field checks', 'on: a wrong type in a message is an error')
    return fail('field checks', 'off: an integer in a float field would be sent as 0',
                'export ROS_PYTHON_CHECK_FIELDS=1')


def domain() -> Finding:
    """ROS_DOMAIN_ID is usable."""
    text = os.environ.get('ROS_DOMAIN_ID', '')
    if not text:
        return ok('domain', 'ROS_DOMAIN_ID is not set: domain 0')
    if not text.isdecimal() or int(text) > 232:
        return fail('domain', f'ROS_DOMAIN_ID={text}', 'choose a number from 0 to 101')
    if 102 <= int(text) <= 214:
        return warn('domain', f'ROS_DOMAIN_ID={text}: its ports are in the range Linux gives to other programs',
                    'choose a number from 0 to 101')
    return ok('domain', f'ROS_DOMAIN_ID={text}')


def discovery_range() -> Finding:
    """Who can find, and so command, the nodes."""
    from .. import runtime  # noqa: F401 - sets the default

    reach = os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', '')
    if os.environ.get('ROS_LOCALHOST_ONLY') == '1' or reach == 'LOCALHOST':
        return ok('discovery range', 'LOCALHOST: only programs of this machine')
    if reach in ('SUBNET', 'SYSTEM_DEFAULT'):
        return warn('discovery range', f'{reach}: whoever is in the network can command the batteries',
                    'unset ROS_AUTOMATIC_DISCOVERY_RANGE (the default here is LOCALHOST), or secure the network')
    if reach == 'OFF':
        return fail('discovery range', 'OFF: nodes do not find each other',
                    'export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST')
    return fail('discovery range', f'{reach!r} is not a range', 'use LOCALHOST or SUBNET')


def middleware() -> Finding:
    """The ROS middleware can be loaded."""
    from rclpy.utilities import get_rmw_implementation_identifier

    try:
        name = get_rmw_implementation_identifier()
    except Exception as error:  # noqa: BLE001 - reported as a finding: it must not hide the other checks
        return fail('middleware', str(error), 'unset RMW_IMPLEMENTATION, or install the one it names')
    if name != 'rmw_fastrtps_cpp':
        return warn('middleware', f'{name}: not measured with bess', 'unset RMW_IMPLEMENTATION for rmw_fastrtps_cpp')
    return ok('middleware', name)


def executor() -> Finding:
    """A message goes through the executor once."""
    from std_msgs.msg import Float64

    from .session import CliError, open_session

    got: list[float] = []
    try:
        with open_session(name='bess_doctor') as session:
            topic = f'/bess_doctor_{os.getpid()}'
            session.node.create_subscription(Float64, topic, lambda m: got.append(m.data), 10)
            publisher = session.node.create_publisher(Float64, topic, 10)
            if not session.until(lambda: publisher.get_subscription_count() > 0, ROUND_TRIP_S):
                return fail('executor', f'a subscriber was not found within {ROUND_TRIP_S:g} s',
                            'allow multicast on the loopback interface; look at ROS_AUTOMATIC_DISCOVERY_RANGE')
            sent = time.monotonic()
            publisher.publish(Float64(data=4.25))
            arrived = session.until(lambda: got, ROUND_TRIP_S)
            took = (time.monotonic() - sent) * 1e3
    except CliError as error:
        return fail('executor', str(error), 'look at RMW_IMPLEMENTATION, ROS_DOMAIN_ID and free memory')
    if not arrived or got[0] != 4.25:
        return fail('executor', f'a message did not arrive within {ROUND_TRIP_S:g} s',
                    'look at /dev/shm and at firewalls')
    return ok('executor', f'a message arrived (within {took:.0f} ms)')


def shared_memory() -> Finding:
    """/dev/shm, which messages between processes go through."""
    folder = Path('/dev/shm')
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return warn('shared memory', '/dev/shm cannot be written: messages take the slower way over UDP',
                    'mount a tmpfs at /dev/shm')
    free = shutil.disk_usage(folder).free / 1e6
    if free < SHM_WARN_MB:
        return warn('shared memory', f'/dev/shm has {free:.0f} MB free',
                    f'make at least {SHM_WARN_MB:.0f} MB free (docker: --shm-size=256m)')
    return ok('shared memory', f'/dev/shm has {free:.0f} MB free')


def plug_ins() -> Finding:
    """Every node type, driver and mode can be loaded."""
    from .. import plugins
    from .. import site as site_module

    broken = []
    types = site_module.known_types()
    for name in types:
        try:
            site_module.resolve_type(name)
        except plugins.PluginError as error:
            broken.append(str(error))
    if not types:
        return fail('plug-ins', 'no node types are installed', 'pip install the package (entry points are missing)')
    if broken:
        return warn('plug-ins', '; '.join(broken),
                    'install what is missing; sites without these types are not affected')
    return ok('plug-ins', f'{len(types)} node types, drivers and modes can be loaded')


# -- machine -------------------------------------------------------------------------------------


def open_files() -> Finding:
    """Limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f'{soft} may be open (hard limit {hard})'
    if soft < FILES_WARN:
        level = fail if soft < FILES_FAIL else warn
        return level('open files', text, f'ulimit -n {FILES_WARN} or LimitNOFILE= in the service file')
    return ok('open files', text)


def existing_parent(folder: Path) -> Path:
    """The folder itself or the nearest parent that exists."""
    return next(p for p in (folder, *folder.absolute().parents) if p.exists())


def state_folder(folder: Path) -> Finding:
    """Journals, faults and logs can be written."""
    probe = existing_parent(folder)
    text = str(folder) if probe == folder else f'{folder} (will be made)'
    try:
        with tempfile.TemporaryFile(dir=probe) as file:
            file.write(b'bess')
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        advice = ('free some space' if error.errno in (errno.ENOSPC, errno.EDQUOT)
                  else 'give this user write access, or choose another folder with --state or XDG_STATE_HOME')
        return fail('state folder', f'{text}: {error.strerror or error}', advice)
    return ok('state folder', f'{text} can be written')


def disk_space(folder: Path) -> Finding:
    """Room for journals and recordings."""
    usage = shutil.disk_usage(existing_parent(folder))
    free = usage.free / 1e6
    text = f'{free / 1e3:.1f} GB free of {usage.total / 1e9:.1f} GB'
    if free < DISK_FAIL_MB:
        return fail('disk', text, f'free at least {DISK_WARN_MB / 1e3:g} GB')
    if free < DISK_WARN_MB:
        return warn('disk', text, f'free at least {DISK_WARN_MB / 1e3:g} GB, or lower max_total_mb of the recorder')
    return ok('disk', text)


def clock() -> Finding:
    """The wall clock is synchronised (schedules and stamps need it; control does not)."""
    state = _clock_synchronised()
    if state is None:
        return warn('clock', 'cannot tell whether it is synchronised', 'see that chrony or systemd-timesyncd runs')
    if not state:
        return warn('clock', 'not synchronised: schedules may run at the wrong time',
                    'start chrony or systemd-timesyncd (timedatectl set-ntp true)')
    return ok('clock', 'synchronised')


def _clock_synchronised() -> bool | None:
    if tool := shutil.which('timedatectl'):
        try:
            answer = subprocess.run([tool, 'show', '-p', 'NTPSynchronized', '--value'],
                                    capture_output=True, text=True, timeout=3.0, check=False)
        except subprocess.TimeoutExpired:
            return None
        if answer.stdout.strip() in ('yes', 'no'):
            return answer.stdout.strip() == 'yes'
    adjtimex = getattr(ctypes.CDLL(None, use_errno=True), 'adjtimex', None)
    if adjtimex is None:
        return None
    # modes = 0 only reads; struct timex is at most 208 bytes.
    result = adjtimex(ctypes.create_string_buffer(512))
    return None if result < 0 else result != _TIME_ERROR


def serial_ports() -> Finding:
    """USB serial ports that are there can be opened by this user."""
    patterns = ('ttyUSB*', 'ttyACM*', 'ttyAMA*', 'ttyRS485*')
    ports = sorted(str(p) for pattern in patterns for p in Path('/dev').glob(pattern))
    if not ports:
        return ok('serial ports', 'none on this machine')
    closed = [p for p in ports if not os.access(p, os.R_OK | os.W_OK)]
    if closed:
        return warn('serial ports', f'no access to {", ".join(closed)}', access_advice(closed[0]))
    return ok('serial ports', ', '.join(ports))


def access_advice(port: str) -> str:
    """How to get access to a port."""
    try:
        group = grp.getgrgid(os.stat(port).st_gid).gr_name
    except (OSError, KeyError):
        group = 'dialout'
    return f'sudo usermod -a -G {group} $USER, then log in again'


def processors() -> Finding:
    """Load of the machine."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    text = f'{cores} usable, load {load:.1f}'
    if load > cores:
        return warn('processors', text, 'other programs take the time that control needs; stop them or add cores')
    return ok('processors', text)


def timer_lateness() -> Finding:
    """How late this machine wakes a sleeper now, in ms."""
    worst = 0.0
    for _ in range(40):
        before = time.monotonic()
        time.sleep(0.005)
        worst = max(worst, time.monotonic() - before - 0.005)
    text = f'at most {worst * 1e3:.1f} ms late in 40 waits of 5 ms'
    if worst * 1e3 > LATE_BAD_MS:
        return warn('timer', text, 'control ticks of 100 ms will jitter: lower the load of the machine')
    return ok('timer', text + ('' if worst * 1e3 <= LATE_OK_MS else ' (fine for ticks of 100 ms)'))


def realtime() -> Finding:
    """Hints for steadier ticks; nothing here is needed."""
    hints = []
    governor = _read('/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor')
    if governor == 'powersave':
        hints.append('CPU governor is powersave: use schedutil or performance')
    kernel = 'PREEMPT_RT kernel' if _read('/sys/kernel/realtime') == '1' else 'ordinary kernel'
    priority = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
    text = f'{kernel}, real-time priority limit {priority}, governor {governor or "unknown"}'
    if hints:
        return warn('realtime', text, '; '.join(hints))
    return ok('realtime', f'{text} (enough for ticks of 100 ms)')


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding='ascii').strip()
    except OSError:
        return ''


