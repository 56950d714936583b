"""Battery cells: open-circuit voltage, resistance, one RC pair, heat; all packs at once.

Arrays are [n_packs, n_cells]; a pack with fewer cells than the largest has rows padded with cells
of zero voltage and zero resistance, so that sums need no mask.

The equations are those of a first-order Thevenin model (Plett, Battery Management Systems vol. 1,
2015, ch. 2), with current I > 0 charging, solved for a constant I over a step dt:

    dv1/dt = I / C1 - v1 / (R1 C1)            v1' = v1 e + R1 (1 - e) I, e = exp(-dt / (R1 C1))
    mean of v1 over the step                   v1 a + R1 (1 - a) I, a = R1 C1 (1 - e) / dt
    mean of OCV over the step                  OCV + slope dq / 2 (the table is piecewise linear)
    mean voltage                               V = OCV_mean + v1_mean + R0 I =: A + B I
    power P at the terminals of the pack       P = I sum(A) + I^2 sum(B), solved for I
    heat                                       R0 I^2 + v1^2 / R1 + charge lost to side reactions
    C dT/dt = heat - (T - T_ambient) / R_th    exact exponential over the step

So power, stored energy and heat of a step balance to rounding, and to second order where a step
crosses a knot of the OCV table: steps are meant to move a cell by less than about 1 % of SoC.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bess_sim.cell_kernel import LIBRARY, CellKernel
from bess_sim.chemistry import CHEMISTRIES, GRID, ocv_table, power_to_current, resistance_factor
from bess_sim.plant_config import PackConfig

Array = NDArray[np.float64]

REFRESH_S = 30.0  # resistances follow temperature and SoC this often, at the latest


class CellBank:
    """All cells of all packs. `step` takes the power at each pack's terminals.

    Public arrays (read only), [n_packs, n_cells]: `charge` and `capacity` (Ah), `voltage`
    (V, mean over the last step), `temperature` (degC), `bleed` (A, balancing). Lists by pack: `current` (A),
    `pack_voltage` (V), `room` and `reach` (Ah that can still be charged and discharged), `dc_energy` (Ws into the
    terminals), `cell_min` and `cell_max` (V).
    """

    def __init__(
        self, packs: Sequence[PackConfig], ambient: float, rng: np.random.Generator
    ) -> None:
        if not packs:
            raise ValueError('no packs')
        self.packs = tuple(packs)
        self.ambient = ambient
        self.sizes = [p.cells for p in packs]
        self.chemistries = [CHEMISTRIES[p.chemistry] for p in packs]
        shape = (len(packs), max(self.sizes))

        def zeros() -> Array:
            return np.zeros(shape)

        def column(values: Sequence[float]) -> Array:
            return np.array(values, dtype=float)[:, None]

        self.real = np.arange(shape[1]) < np.array(self.sizes)[:, None]
        self.capacity, self.charge, self._r_ref = np.ones(shape), np.full(shape, 0.5), zeros()
        self.temperature, self._heat_capacity = np.full(shape, ambient), np.ones(shape)
        for row, (pack, kind) in enumerate(zip(packs, self.chemistries, strict=True)):
            n = pack.cells
            # Drawn for every pack in a fixed order, so that a seed always gives the same cells.
            spread = rng.standard_normal((3, n)).clip(-3.0, 3.0)
            nominal = pack.capacity_ah
            self.capacity[row, :n] = nominal * pack.soh * (1.0 + pack.capacity_spread * spread[0])
            # An aged cell has more resistance; twice the loss of capacity is a usual rule of thumb.
            ohms = pack.resistance or kind.resistance_ah / nominal * (1.0 + 2.0 * (1.0 - pack.soh))
            self._r_ref[row, :n] = ohms * np.exp(pack.resistance_spread * spread[1])
            soc = (pack.initial_soc + pack.soc_spread * spread[2]).clip(0.0, 1.0)
            self.charge[row, :n] = soc * self.capacity[row, :n]
            self._heat_capacity[row] = kind.heat_capacity_ah * nominal
            if pack.initial_temperature is not None:
                self.temperature[row] = pack.initial_temperature
        self._tables()
        self._activation = column([c.activation for c in self.chemistries])
        self._still_air = self._thermal_time = column([c.thermal_time for c in self.chemistries])
        self._heating: Array | None = None  # W into each cell from outside
        self._balance_voltage = column([c.balance_voltage for c in self.chemistries])
        self._balance_current = column([p.balance_current for p in packs])
        self._balances = [(row, CHEMISTRIES[p.chemistry].balance_voltage) for row, p in enumerate(packs)
                          if p.balance_current]  # packs that balance, and from which voltage (V)
        self._r1_share = 0.5  # half of the measured pulse resistance is slow, half is ohmic
        with np.errstate(divide='ignore'):
            tau = column([c.time_constant for c in self.chemistries])
            self._c1 = np.where(self.real, tau / (self._r1_share * self._r_ref), 1.0)
        self.bleed = zeros()
        self.voltage = zeros()  # V
        self._v1, self._next_v1 = zeros(), zeros()  # V
        self._heat, self._loss = zeros(), zeros()  # J since start without, and W summed up over, steps of this dt
        count = len(packs)
        self.current, self.dc_energy = [0.0] * count, [0.0] * count
        self.room, self.reach = [0.0] * count, [0.0] * count
        self.cell_min, self.cell_max = [0.0] * count, [0.0] * count
        self.pack_voltage = [0.0] * count
        self._eta_down = [p.coulomb_efficiency for p in packs]
        self._charging = [False] * count
        # Current (A), charge moved (Ah) and current that side reactions take (A) of the step
        self._flow = np.zeros((3, count, 1))
        # Single values several times as fast
        self._flow_values: Any = self._flow.reshape(-1).data
        self._voltage_values: Any = self.voltage.reshape(-1).data
        self._temperature_values: Any = self.temperature.reshape(-1).data
        self._columns = shape[1]
        self._told: list[float] = []  # Wh of each pack as `told_energy` has it, where the kernel has found it
        self._bleeding = False
        self._ordered: dict[int, Array] = {}  # cells that are bled by order instead of by the own rule, by pack
        # Per ampere: A and B of the mean voltage, ohms of the heat, R1 (1 - e). Constant within `_refresh`:
        # the last two, and (a, e) of the RC pair.
        self._line, self._by_current = np.zeros((4, *shape)), np.zeros((3, *shape))
        self._ae, self._rc = np.zeros((2, *shape)), np.zeros((2, *shape))
        self._x, self._m, self._b, self._u, self._w = zeros(), zeros(), zeros(), zeros(), zeros()
        self._k_eta = zeros()
        self._index = np.zeros(shape, dtype=np.intp)
        self._dt, self._age = 0.0, 0.0
        self._kernel = self._compiled() if LIBRARY.exists() else None
        self._refresh(1.0)
        self._dt = 0.0
        self.voltage[...] = self.open_circuit()
        self._extremes()
        self.pack_voltage = [sum(self.cells_of(row)) for row in range(count)]

    def _compiled(self) -> CellKernel:
        """The compiled step over these arrays."""
        return CellKernel(LIBRARY, self.sizes, len(self._slope_table), GRID, {
            'gain': self._gain, 'offset': self._offset, 'slope': self._slope_table, 'base': self._base_table,
            'energy': self._energy_table, 'ae': self._ae, 'eta': np.array(self._eta_down),
            'full': np.array(self._full_charge), 'bleed': self.bleed, 'charge': self.charge, 'v1': self._v1,
            'voltage': self.voltage, 'temperature': self.temperature, 'loss': self._loss, 'line': self._line,
            'rc': self._rc})

    def _tables(self) -> None:
        """Flat tables of OCV = b + m x over grid position x: zeros first, then the chemistries."""
        kinds = sorted({p.chemistry for p in self.packs})
        none = np.zeros(GRID + 1)
        slopes, bases, energies = [none], [none], [none]
        offset = np.zeros(self.charge.shape)
        for block, kind in enumerate(kinds, start=1):
            table = ocv_table(kind)
            start = block * (GRID + 1)
            slope = np.append(np.diff(table), 0.0)
            slope[-1] = slope[-2]  # rounding may put a full cell on the last knot
            slopes.append(slope)
            bases.append(table - slope * (start + np.arange(GRID + 1)))
            energies.append(np.append(0.0, np.cumsum((table[1:] + table[:-1]) / 2.0)))
            for row, pack in enumerate(self.packs):
                if pack.chemistry == kind:
                    offset[row, : pack.cells] = start
        self._slope_table, self._base_table = np.concatenate(slopes), np.concatenate(bases)
        self._energy_table = np.concatenate(energies)  # V x grid intervals below each knot
        blocks = offset[:, 0].astype(int).tolist()
        self._curves = [self._energy_table[b : b + GRID + 1].tolist() for b in blocks]
        self._full_charge = [
            float(self.capacity[row, :n].sum()) for row, n in enumerate(self.sizes)
        ]
        self._offset, self._gain = offset, np.where(self.real, GRID / self.capacity, 0.0)

    def _rates(self, dt: float) -> None:
        """Coefficients of a step that change with its length, the ambient temperature and the climate only."""
        self._half_c1 = np.where(self.real, self._c1 / (2.0 * dt), 0.0)
        self._k = self._gain * (dt / 7200.0)  # grid positions moved by 1 A in half a step
        self._e_th = np.exp(-dt / self._thermal_time)
        self._to_ambient = self.ambient * (1.0 - self._e_th)
        # a constant heat over the step ends at R_th (1 - e) of it; R_th = thermal time / C
        self._heat_k = self._thermal_time / self._heat_capacity * (1.0 - self._e_th)
        if self._kernel is not None:
            self._kernel.take(k=self._k, half_c1=self._half_c1, e_th=self._e_th, to_ambient=self._to_ambient,
                              heat_k=self._heat_k)

    def _refresh(self, dt: float) -> None:
        """What changes slowly: resistances, coefficients of the step, headroom, balancing."""
        if dt != self._dt or self._age == inf:
            self._rates(dt)
        soc = self.charge / self.capacity
        ohms = self._r_ref * resistance_factor(self.temperature + 273.15, soc, self._activation)
        r1 = self._r1_share * ohms
        tau = np.where(self.real, r1 * self._c1, 1.0)
        a, e = self._ae
        np.exp(-dt / tau, out=e)
        left = 1.0 - e
        np.multiply(tau, left, out=a)
        a /= dt
        self._line[2] = self._b0 = ohms - r1 + r1 * (1.0 - a)
        np.multiply(r1, left, out=self._line[3])
        self._heat += self._loss * self._dt
        self._loss[...] = 0.0
        self._dt, self._age = dt, 0.0
        self._balance()
        # what is bled by the next look
        kept = self.charge - self.bleed * ((REFRESH_S + dt) / 3600.0) if self._bleeding else self.charge
        free = self.capacity - self.charge
        for row, n in enumerate(self.sizes):
            margin = 1e-9 * self.packs[row].capacity_ah  # rounding never leaves the OCV table
            self.room[row] = max(float(free[row, :n].min()) - margin, 0.0)
            self.reach[row] = max(float(kept[row, :n].min()) - margin, 0.0)
        if self._kernel is not None:
            self._kernel.renew(dt, self._bleeding, self._heating, self.room, self.reach, self._b0)
        else:
            self._set_eta(self._charging)

    def _balance(self) -> None:
        """Bleed the cells that are high and more than 5 mV ahead of the lowest of their pack."""
        if not self._balances:
            return
        if not self._ordered and not any(self.cell_max[row] > above for row, above in self._balances):
            if self._bleeding:
                self.bleed[...] = 0.0
                self._bleeding = False
            return
        low = np.array(self.cell_min)[:, None]
        ahead = (self.voltage > self._balance_voltage) & (self.voltage > low + 0.005) & self.real
        for row, flags in self._ordered.items():
            ahead[row] = flags
        # A voltage after a huge step says little: what is bled until the next look must be there.
        ahead &= self.charge > self._balance_current * ((REFRESH_S + self._dt) / 3600.0)
        np.multiply(ahead, self._balance_current, out=self.bleed)
        self._bleeding = bool(ahead.any())

    def step(self, powers: Sequence[float], dt: float) -> list[float]:
        """Advance by `dt` s with `powers` (W, + = charging) at the terminals; returns A.

        A current is cut where a cell would leave SoC 0..1 within the step. Raises ValueError unless there is one power
        for each pack.
        """
        if len(powers) != len(self.sizes):
            raise ValueError(f'{len(powers)} powers for {len(self.sizes)} packs')
        self._age += dt
        if dt != self._dt or self._age > REFRESH_S:
            self._refresh(dt)
        if self._kernel is not None:
            (self.cell_min, self.cell_max, self.current, self.pack_voltage, self.dc_energy, self.room, self.reach,
             self._told) = self._kernel.step(powers)
            return self.current
        charging = [power > 0.0 for power in powers]
        if charging != self._charging:
            self._set_eta(charging)
        self._close(self._currents(powers, self._open(), dt), dt)
        self._extremes()
        return self.current

    def _open(self) -> list[list[float]]:
        """Voltage A + B I of each cell; sums of A (V) and of B (ohm) over the cells of each pack."""
        x, m, w, line, rc = self._x, self._m, self._w, self._line, self._rc
        np.multiply(self.charge, self._gain, out=x)
        x += self._offset
        np.copyto(self._index, x, casting='unsafe')
        self._slope_table.take(self._index, out=m, mode='clip')
        self._base_table.take(self._index, out=self._b, mode='clip')
        x *= m
        x += self._b  # OCV
        np.multiply(self._ae, self._v1, out=rc)
        np.add(x, rc[0], out=line[0])
        np.multiply(m, self._k_eta, out=line[1])
        line[1] += self._b0
        if self._bleeding:
            np.multiply(m, self._k, out=w)
            w += self._b0
            w *= self.bleed
            line[0] -= w
        sums: list[list[float]] = np.add.reduce(line[:2], axis=2).tolist()
        return sums

    def _close(self, lossy: bool, dt: float) -> None:
        """Charge, RC voltage, heat and temperature at the end of the step."""
        u, w, line, by_current = self._u, self._w, self._line, self._by_current
        rc, v1, v = self._rc, self._v1, self.voltage
        np.multiply(line[1:], self._flow[0], out=by_current)
        if self._bleeding:
            inner: Array = self._flow[0] - self.bleed
            np.multiply(line[2:], inner, out=by_current[1:])
        else:
            inner = self._flow[0]
        np.add(line[0], by_current[0], out=v)
        # heat (W) of each cell into w
        np.add(by_current[1], rc[0], out=w)
        if lossy:
            np.subtract(v, w, out=u)  # mean OCV
            u *= self._flow[2]
            w *= inner
            w += u
        else:
            w *= inner
        if self._bleeding:
            np.multiply(v, self.bleed, out=u)
            w += u
            self.charge -= self.bleed * (dt / 3600.0)
        new = np.add(rc[1], by_current[2], out=self._next_v1)
        np.subtract(v1, new, out=u)
        v1 += new
        u *= v1
        u *= self._half_c1
        w += u
        self._v1, self._next_v1 = new, v1
        self.charge += self._flow[1]
        t = self.temperature
        t *= self._e_th
        t += self._to_ambient
        np.multiply(w, self._heat_k, out=u)
        t += u
        if self._heating is not None:
            t += self._heating * self._heat_k
        self._loss += w

    def _set_eta(self, charging: list[bool]) -> None:
        """Charge that arrives: less than the current while charging."""
        self._charging = charging
        eta = [self._eta_down[row] if up else 1.0 for row, up in enumerate(charging)]
        np.multiply(self._k, np.array(eta)[:, None], out=self._k_eta)

    def _currents(self, powers: Sequence[float], sums: list[list[float]], dt: float) -> bool:
        """Current of each pack from the sums of A and B over its cells; whether side reactions take part."""
        hours = dt / 3600.0
        lossy = False
        flow, count = self._flow_values, len(self.sizes)
        for row, (power, volts, ohms) in enumerate(zip(powers, sums[0], sums[1], strict=True)):
            current = power_to_current(power, volts, ohms) if power else 0.0
            eta = self._eta_down[row] if power > 0.0 else 1.0
            moved = current * eta * hours
            if moved > self.room[row] or moved < -self.reach[row]:
                moved = min(max(moved, -self.reach[row]), self.room[row])
                current = moved / (eta * hours)
            self.room[row] -= moved
            self.reach[row] += moved
            self.current[row] = current
            self.pack_voltage[row] = volts = volts + ohms * current
            self.dc_energy[row] += volts * current * dt
            lossy = lossy or eta != 1.0
            flow[row], flow[count + row], flow[2 * count + row] = current, moved, (1.0 - eta) * current
        return lossy

    @property
    def heat(self) -> Array:
        """Heat (J) of each cell since start."""
        return self._heat + self._loss * self._dt

    def cells_of(self, row: int) -> list[float]:
        """Voltage (V) of each cell of a pack, mean over the last step."""
        start = row * self._columns
        cells: list[float] = self._voltage_values[start:start + self.sizes[row]].tolist()
        return cells

    def temperature_of(self, row: int, cell: int) -> float:
        """Temperature (degC) of a cell of a pack."""
        return float(self._temperature_values[row * self._columns + cell])

    def _extremes(self) -> None:
        cells = [self.cells_of(row) for row in range(len(self.sizes))]
        self.cell_max, self.cell_min = [max(c) for c in cells], [min(c) for c in cells]

    def set_ambient(self, ambient: float) -> None:
        """Change the ambient temperature (degC)."""
        if not isfinite(ambient):
            raise ValueError(f'ambient must be a finite number, not {ambient!r}')
        self.ambient, self._age = ambient, inf  # forces a refresh

    def set_climate(self, row: int, heater: float, airflow: float) -> None:
        """A heater (W, spread over the cells of a pack), and how much better (factor, 1 = still air) air carries heat
        away. Raises ValueError."""
        if not (0.0 <= heater < inf and 1.0 <= airflow < inf):
            raise ValueError(f'heater {heater!r} W must be at least 0, airflow {airflow!r} at least 1')
        heating = np.zeros_like(self.temperature) if self._heating is None else self._heating
        heating[row] = np.where(self.real[row], heater / self.sizes[row], 0.0)
        self._heating = heating if heating.any() else None
        self._thermal_time = self._thermal_time.copy()
        self._thermal_time[row] = self._still_air[row] / airflow
        self._age = inf  # forces a refresh

    def open_circuit(self) -> Array:
        """OCV of every cell (V), 0 where a row is padded."""
        x = self.charge * self._gain + self._offset
        index = x.astype(np.intp)
        return np.where(self.real, self._base_table[index] + self._slope_table[index] * x, 0.0)

    def stored_energy(self, row: int) -> float:
        """Energy (Wh) of a pack above SoC 0: the integral of OCV over charge, and what is in C1."""
        n = self.sizes[row]
        x = self.charge[row, :n] * self._gain[row, :n] + self._offset[row, :n]
        index = x.astype(np.intp)
        whole = self._base_table[index] + self._slope_table[index] * (index + x) / 2.0
        volts = self._energy_table[index] + whole * (x - index)
        rc = 0.5 * self._c1[row, :n] * self._v1[row, :n] ** 2
        return float((volts / self._gain[row, :n]).sum() + rc.sum() / 3600.0)

    def told_energy(self, row: int) -> tuple[float, float]:
        """Energy now and when full (Wh) of a pack as if its cells were equal.

        What a BMS can tell, and cheap; `stored_energy` is the exact sum (about 0.1 % apart).
        """
        full, curve = self._full_charge[row], self._curves[row]
        if self._told:
            return self._told[row], curve[GRID] * (full / GRID)
        level = self._added(row) / full
        k = min(int(level * GRID), GRID - 1)
        whole = curve[k] + (curve[k + 1] - curve[k]) * (level * GRID - k)
        return whole * (full / GRID), curve[GRID] * (full / GRID)

    def _added(self, row: int) -> float:
        charge = 0.0
        for cell in self.charge[row, : self.sizes[row]].tolist():  # not `sum`: see `aggregate_values.plain_sum`
            charge += cell
        return charge

    def order_balancing(self, row: int, cells: Sequence[bool]) -> None:
        """Bleed these cells of a pack from now on; () = those that its own rule finds. Raises ValueError."""
        if not cells:
            self._ordered.pop(row, None)
        elif len(cells) != self.sizes[row]:
            raise ValueError(f'{len(cells)} cells are named, the pack has {self.sizes[row]}')
        else:
            flags = np.zeros(self.voltage.shape[1], dtype=bool)
            flags[:len(cells)] = cells
            self._ordered[row] = flags
        self._age = max(self._age, REFRESH_S + 1.0)  # looked at with the next step

    @property
    def balancing(self) -> bool:
        """Whether any cell of any pack is being bled."""
        return self._bleeding
