"""A partition to JSON types and back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite, nan
from typing import Any

from bess_virtual.ledger import Ledger, LossRule
from bess_virtual.partition import Expected, Partition
from bess_virtual.shares import UNASSIGNED, Policy, Share
from bess_virtual.statements import PERIOD_S, OpenPeriod

STATE_VERSION = 2


def to_dict(partition: Partition) -> dict[str, Any]:
    """State to be saved (JSON types only; None stands for NaN)."""
    period, ledgers = partition.period, partition.ledgers
    return {
        'version': STATE_VERSION,
        'policy': partition.policy.value,
        'expected': None if partition.expected is None else asdict(partition.expected),
        'children': {
            name: {'share': asdict(share), 'ledger': None if ledgers is None else asdict(ledgers[i])}
            for i, (name, share) in enumerate(zip(partition.names, partition.shares, strict=True))},
        'removed': asdict(partition.removed),
        'source_in': partition.source_in,
        'source_out': partition.source_out,
        'period': None if not isfinite(period.start) else {
            'sequence': period.sequence, 'start': period.start, 'last': period.last, 'elapsed': period.elapsed,
            'counter_start': [_plain(c) for c in period.counter_start],
            'counter_last': [_plain(c) for c in period.counter_last],
            'counted': period.counted, 'gap': period.gap, 'sums': period.sums, 'stored': period.stored},
    }


def from_dict(state: Mapping[str, Any], charge_efficiency: float = 1.0, discharge_efficiency: float = 1.0,
              loss_rule: LossRule = LossRule.THROUGHPUT, period: float = PERIOD_S) -> Partition:
    """A partition from its saved state (version 1, too). ValueError when it is damaged or of another version."""
    try:
        if state['version'] not in (1, STATE_VERSION):
            raise ValueError(f'version {state["version"]}, expected {STATE_VERSION}')
        accounts = state['children']
        expected = state['expected']
        partition = Partition(
            {name: Share(**account['share']) for name, account in accounts.items() if name != UNASSIGNED},
            Policy(state['policy']), None if expected is None else Expected(**expected),
            charge_efficiency, discharge_efficiency, loss_rule, period)
        if (UNASSIGNED in accounts) != (UNASSIGNED in partition.names):
            partition.set_accounts(dict(zip(partition.children, partition.shares, strict=False)),
                                   keep_unassigned=True)
        if all(account['ledger'] is not None for account in accounts.values()):
            partition.ledgers = [_ledger(accounts[name]['ledger']) if name in accounts else Ledger()
                                 for name in partition.names]
        if state['version'] == 1:
            return partition
        partition.removed = _ledger(state['removed'])
        partition.source_in, partition.source_out = _finite(state['source_in']), _finite(state['source_out'])
        if state['period'] is not None:
            partition.period = _period(state['period'])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'saved partition is damaged: {error!r}') from error
    return partition


def _period(values: Mapping[str, Any]) -> OpenPeriod:
    sums = {str(name): [_finite(v) for v in column] for name, column in values['sums'].items()}
    if any(len(column) != 5 for column in sums.values()):
        raise ValueError('a sum of the open period does not hold five values')
    start, last = ((nan if a is None else _finite(a), nan if b is None else _finite(b))
                   for a, b in (values['counter_start'], values['counter_last']))
    return OpenPeriod(
        int(values['sequence']), _finite(values['start']), _finite(values['last']), _finite(values['elapsed']),
        start, last, bool(values['counted']), bool(values['gap']), sums,
        {str(name): int(v) for name, v in values['stored'].items()})


def _ledger(values: Mapping[str, Any]) -> Ledger:
    return Ledger(**{name: _finite(value) for name, value in values.items()})


def _finite(value: Any) -> float:
    number = float(value)
    if not isfinite(number):
        raise ValueError('the state holds a value that is not finite')
    return number


def _plain(value: float) -> float | None:
    return value if isfinite(value) else None
