"""Node of a battery of bare cells: the BMS shell, and what tells the guard that everything above is alive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bess.msg import Heartbeat
from bess_core import qos
from bess_core.params import merge, param
from bess_drivers.battery_node import BatteryDriverNode
from bess_drivers.cells.controller import CellController
from bess_drivers.driver_params import BatteryParams


@dataclass(frozen=True, kw_only=True)
class LinkParams(BatteryParams):
    """Parameters of the shell."""

    link_nodes: list[str] = param([], doc='nodes whose heartbeat is the link to everything above; empty = any other '
                                          'node of the site')


class CellControllerNode(BatteryDriverNode):
    """`~/status`, `~/cells`, `~/set_contactor` as any BMS; listens to heartbeats."""

    Shell = LinkParams
    DeviceClass: ClassVar[Any] = CellController
    Params: ClassVar[type] = merge('CellControllerNodeParams', LinkParams, CellController.Params)

    def make_device(self) -> CellController:
        """Kept, for the heartbeats and for the end."""
        self._controller: CellController | None = super().make_device()
        return self._controller  # type: ignore[return-value]

    def configure_role(self) -> None:
        """Hear everything above."""
        super().configure_role()
        self._hearts = self.create_subscription(Heartbeat, self.ctx.topic('heartbeat'), self._on_heartbeat, qos.EVENT)

    def on_bess_cleanup(self) -> None:
        """The relay opens before the line closes."""
        controller, self._controller = getattr(self, '_controller', None), None
        if controller is not None:
            controller.shutdown()
        if getattr(self, '_hearts', None) is not None:
            self.destroy_subscription(self._hearts)
            self._hearts = None
        super().on_bess_cleanup()

    def _on_heartbeat(self, message: Heartbeat) -> None:
        wanted = self.params.link_nodes
        if (message.node in wanted if wanted else message.node != self.name) and self._controller is not None:
            self._controller.sign_of_life()
