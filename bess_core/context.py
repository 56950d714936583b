"""What every node of one process shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .clock import Clock
from .exchange import Exchange
from .ticker import Ticker

if TYPE_CHECKING:
    from .site import Site


@dataclass
class NodeContext:
    """Surroundings of the nodes of one process."""

    namespace: str  # ROS namespace of the site, e.g. "/home"
    state_dir: Path  # survives restarts: journals, ledgers, faults, logs
    clock: Clock
    ticker: Ticker
    post: Callable[[Callable[[], None]], object]  # run a function in the executor thread, from any thread
    group: str = 'control'  # process of the site file
    site: Site | None = None
    nodes: dict[str, Any] = field(default_factory=dict)  # nodes of this process by name
    shared: dict[str, Any] = field(default_factory=dict)  # objects shared by nodes of this process (buses)
    heartbeat_s: float = 0.25  # 0 = none
    diagnostics_s: float = 1.0  # 0 = none
    parameter_services: bool = False
    add_node: Callable[[Any], None] | None = None  # serve a node that was made while the process runs; None = cannot
    remove_node: Callable[[Any], None] | None = None  # no longer serve it
    activity: int = 0  # callbacks run so far; standing still = everything has settled
    exchange: Exchange | None = None  # topics without the middleware, where nobody else can listen
    asking: int = 0  # calls of services that are not answered yet; counted where there is an exchange

    def topic(self, name: str) -> str:
        """Absolute name of a site-wide topic or service."""
        return f'{self.namespace}/{name}'
