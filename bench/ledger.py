"""Ledger of a partition over a simulated year, with a source that measures as real ones do.

The source is a battery with losses in both directions. What the partition sees of it is not the truth:
power with noise and an offset, sampled in steps; counters and stored energy in whole steps of the
display; the state of charge estimate wanders. Two children ask now for the same, now for opposite powers.

Drift: how far what the children delivered in sum (charged - discharged) is from the source's own
counters, relative to the throughput of the source. The children's stored energy against the source's is
the second figure.
"""

from __future__ import annotations

from math import sin, tau

import numpy as np

from .figures import Figure

STEP = 300.0  # s
YEAR = 365 * 86400.0
FULL, LIMIT = 10_000.0, 5000.0  # Wh, W
CHARGE, DISCHARGE = 0.95, 0.95
NOISE, OFFSET = 0.005, 0.002  # share of the power: random, and constant of this meter
COUNT, ENERGY = 100.0, 10.0  # Wh, steps of counters and of the stored energy


def measure(days: float = 365.0) -> list[Figure]:
    """A year in steps of 5 min."""
    from bess_core.values import BatteryReading, Contactor, Mode, Quality
    from bess_virtual.partition import Expected, Partition
    from bess_virtual.shares import Policy, Share

    rng = np.random.default_rng(5)
    partition = Partition({'a': Share(0.7, 0.7, 0.7), 'b': Share(0.3, 0.3, 0.3)}, Policy.PROPORTIONAL,
                          Expected(FULL, LIMIT, LIMIT), CHARGE, DISCHARGE)
    steps = round(days * 86400.0 / STEP)
    noise = rng.normal(1.0 + OFFSET, NOISE, steps).tolist()
    wish = rng.uniform(-1.0, 1.0, (steps // 12 + 1, 2)).tolist()
    hours = STEP / 3600.0
    stored, charged, discharged, wander = 0.5 * FULL, 0.0, 0.0, 0.0
    in_force: dict[str, float] = {}
    power = 0.0
    readings: dict[str, BatteryReading] = {}
    begin: tuple[float, float] | None = None  # of the children's sum and of the source, after the first look
    children = source = 0.0
    for k in range(steps + 1):
        if k:
            flow = power * hours
            stored += flow * CHARGE if flow > 0 else flow / DISCHARGE
            charged, discharged = charged + max(flow, 0.0), discharged - min(flow, 0.0)
        wander = 0.999 * wander + rng.normal(0.0, 2.0)
        room, rest = FULL - stored, stored
        now = k * STEP
        reading = BatteryReading(
            time=now, newest=now, quality=Quality.OK,
            mode=Mode.CHARGING if power > 0 else Mode.DISCHARGING if power < 0 else Mode.IDLE,
            contactor=Contactor.CLOSED, voltage=51.2, current=power / 51.2,
            power=power * noise[k - 1] if k else 0.0,
            energy=round(min(max(stored + wander, 0.0), FULL) / ENERGY) * ENERGY, energy_full=FULL,
            charge=stored / 51.2, charge_full=FULL / 51.2,
            max_charge_current=min(LIMIT, room / hours / CHARGE) / 51.2,
            max_discharge_current=min(LIMIT, rest / hours * DISCHARGE) / 51.2,
            max_charge_power=min(LIMIT, room / hours / CHARGE),
            max_discharge_power=min(LIMIT, rest / hours * DISCHARGE), soc=stored / FULL, soh=1.0,
            energy_charged=charged // COUNT * COUNT, energy_discharged=discharged // COUNT * COUNT)
        readings = partition.refresh(reading, in_force, STEP if k else 0.0)
        children = sum(r.energy_charged - r.energy_discharged for r in readings.values())
        source = reading.energy_charged - reading.energy_discharged
        if begin is None:
            begin = (children, source)
        a, b = wish[k // 12]
        sun = sin(tau * now / 86400.0)  # charge by day, discharge by night, each child with a will of its own
        net = partition.net_request({'a': 3500.0 * (0.6 * sun + 0.6 * a), 'b': 1500.0 * (0.4 * sun + 0.8 * b)})
        in_force, power = net.granted, net.source_power
    assert begin is not None
    throughput = charged + discharged
    apart = abs(sum(r.energy for r in readings.values()) - reading.energy)
    return [
        Figure('ledger drift after a simulated year', abs((children - begin[0]) - (source - begin[1])) / throughput,
               'of throughput', 1e-3),
        Figure('ledgers of the children against the energy of the source, after a year', apart / throughput,
               'of throughput', 1e-3),
        Figure('throughput of that year', throughput / FULL, 'full charges'),
    ]
