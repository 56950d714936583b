"""What is administered at a partition: its files, children at run time, energy statements."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from math import isfinite, isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bess.srv import AddChild, EnergyStatement, RemoveChild, ResizeChild
from bess_core.site import NAME, NAME_RULE
from bess_core.values import Severity

from .ledger import Ledger, LossRule
from .partition import Expected, Partition
from .partition_answers_node import energy_statement, shares_text
from .partition_children import adapt, add_child, remove_child, resize_child, shares_of
from .partition_state import from_dict, to_dict
from .partition_store import RecordFiles, StateFile
from .prices import Prices, decimal, load_prices
from .shares import REMOVED, UNASSIGNED, Policy, Share
from .statements import Record

if TYPE_CHECKING:
    from .partition_node import PartitionNode

SHARE_FIELDS = {'energy': 'energy', 'charge_power': 'charge', 'discharge_power': 'discharge',
                'promised_charge_power': 'promised_charge', 'promised_discharge_power': 'promised_discharge'}


class PartitionDesk:
    """One per configured partition. Writing goes through one thread, so that no tick waits for the disk;
    a change of the children is answered only after it is on the disk. OSError when files cannot be opened."""

    def __init__(self, node: PartitionNode) -> None:
        self._node = node
        self.notices: list[str] = []
        folder: Path = node.ctx.state_dir
        self._legacy = folder / 'ledgers' / f'{node.name}.json'
        self._file = StateFile(folder / 'ledgers' / f'{node.name}.jsonl')
        self._records = RecordFiles(folder / 'statements' / node.name)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f'{node.name} files')
        self._job: Future[tuple[int, str]] | None = None
        self._unstored: list[Record] = []

    @property
    def _partition(self) -> Partition:
        return self._node._partition

    # -- files ---------------------------------------------------------------------------------------

    def restore(self) -> Partition:
        """The partition as it was saved, or a new one; what is wrong or changed becomes fault and notice."""
        node, p = self._node, self._node.params
        expected = (Expected(p.rated_energy, p.rated_charge_power, p.rated_discharge_power)
                    if p.rated_energy else None)
        fresh = Partition(p.shares(), Policy(p.policy), expected, p.charge_efficiency, p.discharge_efficiency,
                          LossRule(p.loss_rule), p.statement_period)
        problems = [*self._file.problems, *self._records.problems]
        saved, of_site, source = None, None, p.source
        try:
            state = self._file.state
            if state is None and self._legacy.exists():
                state = {'partition': json.loads(self._legacy.read_text()), 'site_children': None, 'source': source}
            if state is not None:
                saved = from_dict(state['partition'], p.charge_efficiency, p.discharge_efficiency, fresh.loss_rule,
                                  p.statement_period)
                of_site, source = state['site_children'], state['source']
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f'saved ledgers cannot be read: {error}')
        partition = fresh if saved is None else self._reconcile_site(saved, fresh, of_site)
        self._reconcile_records(partition, known=saved is not None, same_source=source == p.source)
        node.set_fault(bool(problems), 'partition.ledger', Severity.ERROR, '; '.join(problems))
        for text in self.notices:
            node.log.warning('partition', notice=text)
        return partition

    def _reconcile_site(self, saved: Partition, fresh: Partition, of_site: Any) -> Partition:
        """Which children hold: the site file's when it has changed since, else the saved ones."""
        wanted, have = shares_of(fresh), shares_of(saved)
        if fresh.policy is not saved.policy:
            self.notices.append(f'policy changed in the site file: {saved.policy.value} -> {fresh.policy.value}')
            if fresh.policy is not Policy.GUARANTEED:
                have = {n: Share(s.energy, s.charge, s.discharge) for n, s in have.items()}
                saved.set_accounts(have, keep_unassigned=UNASSIGNED in saved.names)
            saved.policy = fresh.policy
        if fresh.expected is not None:
            saved.expected = fresh.expected
        if of_site is None or of_site == _plain(wanted):
            if of_site is not None and have != wanted:
                self._notice_override(have)
            elif of_site is None and have != wanted:
                self.notices += [f'site file changed: {t}' for t in adapt(saved, wanted)]
        else:
            self.notices += [f'site file changed: {t}' for t in adapt(saved, wanted)]
        return saved

    def _notice_override(self, have: dict[str, Share]) -> None:
        children = '; '.join(f'{n}: {shares_text(s)}' for n, s in have.items())
        self.notices = [f'children differ from the site file, they were changed while the site ran: {children}']

    def _reconcile_records(self, partition: Partition, *, known: bool, same_source: bool) -> None:
        """The statements may be ahead of the state (the last write was cut), or all that is left."""
        last, period = self._records.last, partition.period
        if not same_source:
            self.notices.append('the source is another one: its counters start anew')
            period.counter_last = (nan, nan)
            period.counted = False
        if last is None:
            return
        if not known and set(last.rows) == set(partition.names):
            partition.ledgers = [Ledger(energy=last.rows[n].stored / 1000, correction=last.rows[n].stored / 1000)
                                 for n in partition.names]
            self.notices.append('ledgers restored from the last energy record')
        if not isfinite(period.start) or last.sequence >= period.sequence:
            period.counter_last = last.counters[2:] if last.counters is not None and same_source else (nan, nan)
            period.sequence = last.sequence
            period.begin(last.end, partition.names, last.rows)

    def save(self, *, wait: bool = False) -> str:
        """Write what is new; returns what went wrong when `wait`; else the next call hears it and tries again."""
        if self._job is not None and (wait or self._job.done()):
            self._written(self._job)
        if self._job is not None:
            return ''
        self._unstored += self._partition.closed
        self._partition.closed.clear()
        state = {'site_children': _plain(self._node.params.shares()), 'source': self._node.params.source,
                 'partition': to_dict(self._partition)}
        job = self._job = self._worker.submit(self._write, self._unstored.copy(), state)
        return self._written(job) if wait else ''

    def _write(self, records: list[Record], state: dict[str, Any]) -> tuple[int, str]:
        done = 0
        try:
            for record in records:
                self._records.append(record)
                done += 1
            self._file.write(state)
        except (OSError, ValueError) as error:
            return done, str(error)
        return done, ''

    def _written(self, job: Future[tuple[int, str]]) -> str:
        done, error = job.result()
        self._job = None
        del self._unstored[:done]
        self._node.set_fault(bool(error), 'partition.save', Severity.ERROR, f'ledgers cannot be saved: {error}')
        return error

    def close(self) -> None:
        """Save a last time and end the thread."""
        try:
            if hasattr(self._node, '_partition'):
                self.save(wait=True)
        finally:
            self._worker.shutdown()

    # -- children ------------------------------------------------------------------------------------

    def on_add(self, request: AddChild.Request, response: AddChild.Response) -> AddChild.Response:
        """`~/add_child`."""
        def change(wall: float) -> str:
            if problem := self._name_problem(request.name):
                raise ValueError(problem)
            share = Share(**{ours: getattr(request, theirs) for theirs, ours in SHARE_FIELDS.items()})
            add_child(self._partition, request.name, share, request.donor, wall)
            return f'{request.name} added: {shares_text(share)}'

        if self._change(response, change):
            name = request.name
            node = self._node.child_nodes.get(name)
            if node is not None:
                node.forget()  # it was removed before and stayed
            else:
                for left in (f'schedules/{name}.jsonl', f'faults/{name}.json'):  # by an earlier one of this name
                    (self._node.ctx.state_dir / left).unlink(missing_ok=True)
            self._node.ctx.post(lambda: self._node._guarded(self._node.sync_children))
        return response

    def on_resize(self, request: ResizeChild.Request, response: ResizeChild.Response) -> ResizeChild.Response:
        """`~/resize_child`."""
        def change(wall: float) -> str:
            old = shares_of(self._partition).get(request.name, Share(0.0, 0.0, 0.0))
            values = {ours: getattr(request, theirs) for theirs, ours in SHARE_FIELDS.items()}
            share = Share(**{k: getattr(old, k) if isnan(v) else v for k, v in values.items()})
            resize_child(self._partition, request.name, share, request.partner, wall)
            return f'{request.name} is now: {shares_text(share)}'

        self._change(response, change)
        return response

    def on_remove(self, request: RemoveChild.Request, response: RemoveChild.Response) -> RemoveChild.Response:
        """`~/remove_child`."""
        def change(wall: float) -> str:
            node = self._node.child_nodes.get(request.name)
            busy = node.busy() if node is not None and self._node.has_child(request.name) else ''
            if busy and not request.force:
                raise ValueError(f'{request.name}: {busy}; stop it first, or use force')
            energy = remove_child(self._partition, request.name, request.heir, wall)
            return f'{request.name} removed, its {energy:.1f} Wh and its shares go to {request.heir}'

        if self._change(response, change):
            self._node.drop_child(request.name)
        return response

    def _change(self, response: Any, change: Callable[[float], str]) -> bool:
        """Apply a change of the children and make it durable; all or nothing."""
        node = self._node
        self.save(wait=True)  # what is closed so far, so that undoing cannot lose it
        before = to_dict(self._partition)
        try:
            response.message = change(node.clock.wall())
        except ValueError as error:
            response.message = str(error)
            node.log.info('change of children refused', reason=response.message)
            return False
        if failed := self.save(wait=True):
            p = node.params
            node._partition = from_dict(before, p.charge_efficiency, p.discharge_efficiency, LossRule(p.loss_rule),
                                        p.statement_period)
            self._unstored.clear()
            response.message = f'it could not be saved, nothing has changed: {failed}'
            return False
        response.accepted = True
        have = shares_of(self._partition)
        self.notices = []
        if have != node.params.shares():
            self._notice_override(have)
        node.log.warning('children changed', change=response.message)
        return True

    def _name_problem(self, name: str) -> str:
        if not NAME.match(name):
            return f'{name[:80]!r} is not a ROS name; allowed: {NAME_RULE}'
        if name in (UNASSIGNED, REMOVED):
            return f'{name!r} is reserved'
        if name in self._node.params.children and not self._node.has_child(name):
            return ''  # a child of the site file that was removed comes back
        site = self._node.ctx.site
        taken = {n.name for n in site.nodes} if site is not None else set()
        space = self._node.ctx.namespace
        taken |= {n for n, s in self._node.get_node_names_and_namespaces() if s == space}
        return f'there is a node {name!r} already' if name in taken | set(self._node.ctx.nodes) else ''

    # -- statements ----------------------------------------------------------------------------------

    def on_statement(self, request: EnergyStatement.Request,
                     answer: Callable[[EnergyStatement.Response], None]) -> None:
        """`~/energy_statement`, answered when the disk has been read."""
        unstored = [*self._unstored, *self._partition.closed]
        if (record := self._partition.open_record(self._node.clock.wall())) is not None:
            unstored.append(record)
        job = self._worker.submit(energy_statement, request, self._records, unstored, self._prices)

        def finish(done: Future[EnergyStatement.Response]) -> None:
            error = done.exception()
            answer(done.result() if error is None else EnergyStatement.Response(
                message=f'internal error: {error}'))
            if error is not None:
                self._node.raise_fault('node.callback', Severity.ERROR, f'energy_statement: {error}')

        job.add_done_callback(lambda f: self._node.ctx.post(lambda: finish(f)))

    def _prices(self, currency: str) -> Prices | None:
        p = self._node.params
        if currency and currency != p.currency:
            raise ValueError(f'no price in {currency} is configured'
                             + (f', only in {p.currency}' if p.currency else ''))
        if p.price_file:
            return load_prices(Path(p.price_file), p.currency)
        return Prices(p.currency, (decimal(p.price),)) if p.price == p.price else None


def _plain(shares: dict[str, Share]) -> dict[str, Any]:
    """As it comes back from JSON, to compare."""
    return {name: asdict(share) for name, share in shares.items()}
