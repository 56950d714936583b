"""Settings of a SunSpec battery."""

from __future__ import annotations

from dataclasses import dataclass

from bess_core.params import param
from bess_drivers.sunspec.common import SIGNS, SunSpecParams, check_params


@dataclass(frozen=True)
class SunSpecBatteryParams(SunSpecParams):
    """Where the battery is and what its map leaves open."""

    current_sign: str = param('charge_positive', doc='sign of 802 A; SunSpec leaves it open', choices=tuple(SIGNS))
    power_sign: str = param('charge_positive', doc='sign of 802 W; SunSpec leaves it open', choices=tuple(SIGNS))
    heartbeat: bool = param(False, doc='write 802 CtrlHb, +1 every second, while the device is read')
    heartbeat_timeout_s: float = param(
        5.0, 's', 'a battery whose counting 802 Hb stands still for longer is reported as stale', low=1.5, high=3600.0)
    cells_every_s: float = param(
        5.0, 's', 'how often the single cells of the modules (805) are read', low=0.0, high=3600.0)
    contactor_timeout_s: float = param(
        10.0, 's', 'time within which State must confirm 802 SetOp', low=0.1, high=600.0)
    max_disconnect_current: float = param(
        5.0, 'A', 'no disconnecting while the current is larger: contactors do not break load', low=0.0, high=10000.0)

    def __post_init__(self) -> None:
        check_params(self)
