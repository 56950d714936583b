"""Settings of a SunSpec battery."""

from __future__ import annotations

from dataclasses import dataclass, field

from bess_drivers.sunspec.common import SIGNS, SunSpecParams, check_params


@dataclass(frozen=True)
class SunSpecBatteryParams(SunSpecParams):
    """Where the battery is and what its map leaves open."""

    current_sign: str = field(
        default='charge_positive',
        metadata={
            'unit': '',
            'choices': tuple(SIGNS),
            'doc': 'sign of 802 A; SunSpec leaves it open',
        },
    )
    power_sign: str = field(
        default='charge_positive',
        metadata={
            'unit': '',
            'choices': tuple(SIGNS),
            'doc': 'sign of 802 W; SunSpec leaves it open',
        },
    )
    heartbeat: bool = field(
        default=False,
        metadata={'unit': '', 'doc': 'write 802 CtrlHb, +1 every second, while the device is read'},
    )
    heartbeat_timeout_s: float = field(
        default=5.0,
        metadata={
            'unit': 's',
            'min': 1.5,
            'max': 3600.0,
            'doc': 'a battery whose counting 802 Hb stands still for longer is reported as stale',
        },
    )
    cells_every_s: float = field(
        default=5.0,
        metadata={
            'unit': 's',
            'min': 0.0,
            'max': 3600.0,
            'doc': 'how often the single cells of the modules (805) are read',
        },
    )
    contactor_timeout_s: float = field(
        default=10.0,
        metadata={
            'unit': 's',
            'min': 0.1,
            'max': 600.0,
            'doc': 'time within which State must confirm 802 SetOp',
        },
    )
    max_disconnect_current: float = field(
        default=5.0,
        metadata={
            'unit': 'A',
            'min': 0.0,
            'max': 10000.0,
            'doc': 'no disconnecting while the current is larger: contactors do not break load',
        },
    )

    def __post_init__(self) -> None:
        check_params(self)
