"""What talks on a CAN bus, by listening only: known frame sets and the profiles whose frames are heard."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

from bess_core import plugins
from bess_core.values import Identity
from bess_drivers.can.can_bms_codec import IDS, LIMITS, MEASURED, STATE
from bess_drivers.can.can_bms_codec import decode as decode_can_bms
from bess_drivers.can.channel import CanLink, Frame, Mailbox, parse_address
from bess_drivers.can.profile_device import CanProfileParams
from bess_drivers.device import DeviceError
from bess_drivers.profiles import ProfileError, installed, load_profile

NEEDED = (LIMITS, STATE, MEASURED)  # without these three it is no battery of the CAN-bms frame set
LOOK_S = 0.05


def devices_heard(address: str, seconds: float, say: Callable[[str], None]
                  ) -> list[tuple[str, str, Identity, dict[str, Any], str]]:
    """(type, name, identity, settings, note) of what was heard. Nothing is sent. Raises ValueError, `Disconnected`."""
    wanted = {name: ids for name in installed() if (ids := _ids_of(name, address))}
    box = Mailbox({*range(0x800), *(i for ids in wanted.values() for i in ids)})
    link = CanLink(parse_address(address), box, read_only=True)
    link.open()
    try:
        end = monotonic() + seconds
        while monotonic() < end:
            sleep(LOOK_S)
            link.check()
        frames: dict[tuple[int, int], Frame] = dict(box.frames)
    finally:
        link.close()
    heard = {can_id: frame.data for (can_id, _), frame in frames.items()}
    say(f'{len(heard)} frame ids in {seconds:g} s: {", ".join(f"{i:#x}" for i in sorted(heard)[:20])}')
    found: list[tuple[str, str, Identity, dict[str, Any], str]] = []
    if all(i in heard for i in NEEDED):
        try:
            battery = decode_can_bms({i: d for i, d in heard.items() if i in IDS})
        except DeviceError as error:
            say(f'frames of the CAN-bms set, but: {error}')
        else:
            identity = Identity(getattr(battery, 'manufacturer', ''), getattr(battery, 'model', ''),
                                getattr(battery, 'serial', ''), '')
            found.append(('can_bms', 'bms', identity, {}, 'CAN-bms frame set (0x351, 0x355, 0x356)'))
    for name, ids in wanted.items():
        if ids <= set(heard):
            profile = load_profile(name)
            found.append((f'can_{profile.role.value}', profile.role.value,
                          Identity(profile.head.manufacturer, profile.head.model), {'profile': name},
                          f'all {len(ids)} frames of this profile are heard'))
    return found


def _ids_of(name: str, address: str) -> set[int]:
    """Frame ids that a device of this profile must send; empty when it is none for CAN."""
    try:
        profile = load_profile(name)
    except ProfileError:
        return set()
    if profile.head.transport != 'can':
        return set()
    cls = plugins.load(plugins.DRIVERS, f'can_{profile.role.value}')
    try:
        device = cls(CanProfileParams(address=address, profile=name), read_only=True)
    except ValueError:
        return set()  # needs a setting that nobody knows yet
    return {i for n, source in device._sources.items() if not profile.points[n].keys.optional for i in source.ids()}
