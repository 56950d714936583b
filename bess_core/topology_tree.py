"""The topology of a site as a tree with live values: rows for `bess tree` and the dashboard. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import nan
from typing import Any

ROLES = ('battery', 'partition', 'bms', 'converter')
QUALITY = ('OK', 'STALE', 'INVALID')
MAX_DEPTH = 100


@dataclass
class Branch:
    """One node with what it is made of. Values: see `msg/BatteryStatus.msg`; NaN = unknown, '' = no status."""

    name: str
    type: str
    role: str
    origin: str
    power: float = nan  # W, + = charging
    soc: float = nan  # 0..1
    max_charge_power: float = nan  # W
    max_discharge_power: float = nan  # W
    quality: str = ''
    limits: list[str] = field(default_factory=list)  # reasons in words
    below: list[Branch] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; unknown = None."""
        values = asdict(self)
        values['below'] = [b.to_dict() for b in self.below]
        return {k: None if isinstance(v, float) and v != v else v for k, v in values.items()}


def tree(nodes: Iterable[Any], statuses: Mapping[str, Any]) -> list[Branch]:
    """Roots, in the order of `nodes` (`msg/TopologyNode`), with the last `statuses` (messages by node name).

    What is made of others stands above them. A partition stands above its children and its source; a child
    that has an owner of its own is drawn there as well, without its values being summed anywhere.
    """
    known = {n.name: n for n in nodes if n.role in ROLES}
    owned = {m for n in known.values() for m in n.members}
    # A child of a partition is drawn under the partition, which is drawn over its source.
    parts = {c for n in known.values() for c in n.children if c in known}

    def branch(node: Any, depth: int) -> Branch:
        below = [*node.children, *node.members]
        made = Branch(node.name, node.type, node.role, node.origin,
                      below=[branch(known[b], depth + 1) for b in below if b in known and depth < MAX_DEPTH])
        return _with_status(made, statuses.get(node.name))

    return [branch(n, 0) for n in known.values() if n.name not in owned and n.name not in parts]


def _with_status(branch: Branch, status: Any) -> Branch:
    if status is not None:
        branch.power = float(getattr(status, 'power', getattr(status, 'active_power', nan)))
        branch.soc = float(getattr(status, 'soc', nan))
        branch.max_charge_power = float(status.max_charge_power)
        branch.max_discharge_power = float(status.max_discharge_power)
        branch.quality = QUALITY[status.quality] if status.quality < len(QUALITY) else '?'
        branch.limits = list(status.limit_reasons)
    return branch


def rows(roots: Iterable[Branch]) -> list[tuple[str, Branch]]:
    """(drawn stem, node) from top to bottom."""
    out: list[tuple[str, Branch]] = []

    def walk(branch: Branch, stem: str, below: str) -> None:
        out.append((stem, branch))
        for i, part in enumerate(branch.below):
            last = i == len(branch.below) - 1
            walk(part, below + ('└─ ' if last else '├─ '), below + ('   ' if last else '│  '))

    for root in roots:
        walk(root, '', '')
    return out


__all__ = ['Branch', 'rows', 'tree']
