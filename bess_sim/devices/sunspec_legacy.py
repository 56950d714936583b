"""Simulated older SunSpec inverter: models 1, 101 or 103, 120, 121, 123, 124, and 126 to 144 where asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import hypot, nan, sqrt

from bess_sim.devices.sunspec_base import COMMON, SunSpecDevice, monotonic, scale_for
from bess_sim.devices.sunspec_curves import LEGACY, fill_legacy, take_legacy
from bess_sim.devices.sunspec_der import phases_of
from bess_sim.devices.sunspec_image import SunSpecImage
from bess_sim.plant_api import InverterSample, PlantApi

OFF, MPPT = 1, 4  # St
CHARGE, DISCHARGE = 1, 2  # bits of 124 StorCtl_Mod


class LegacyInverter(SunSpecDevice):
    """Signs in the registers: + = generation; rates of 124 in % of the maxima.

    StorCtl_Mod with one bit charges at InWRte or discharges at OutWRte; with both bits the rates
    bound the power from both sides (negative rates force the other direction); without bits it
    holds. `curves`: with the grid functions 126 to 144, which are kept but do not act.
    """

    def __init__(
        self,
        plant: PlantApi,
        unit_name: str,
        *,
        curves: bool = False,
        clock: Callable[[], float] = monotonic,
        background: bool = True,
    ) -> None:
        self.plant, self.unit_name = plant, unit_name
        self.alarms = 0  # Evt1 bits
        sample = plant.inverter(unit_name)
        self._phases = phases_of(sample)
        self.measurement = 103 if self._phases == 3 else 101
        super().__init__(
            SunSpecImage({1: 0, self.measurement: 0, 120: 0, 121: 0, 123: 0, 124: 0, **(LEGACY if curves else {})}),
            clock,
            background,
        )
        self._charge, self._discharge = sample.max_charge_power, sample.max_discharge_power
        self._fill(sample)
        if curves:
            fill_legacy(self.image)
        self._live = {self.measurement: self._measure(), 124: self._storage()}
        self._w_timer = self._timer(self._revert_power)
        self._var_timer = self._timer(self._revert_reactive)

    def _fill(self, sample: InverterSample) -> None:
        image = self.image
        va = sample.max_apparent_power
        w_sf = scale_for(max(self._charge, self._discharge, va))
        image.scale(
            self.measurement,
            A_SF=-1,
            V_SF=-1,
            W_SF=w_sf,
            Hz_SF=-2,
            VA_SF=w_sf,
            VAr_SF=w_sf,
            PF_SF=-3,
            WH_SF=0,
            DCA_SF=-1,
            DCV_SF=-1,
            DCW_SF=w_sf,
            Tmp_SF=-1,
        )
        image.scale(
            120,
            WRtg_SF=w_sf,
            VARtg_SF=w_sf,
            VArRtg_SF=w_sf,
            ARtg_SF=-1,
            PFRtg_SF=-2,
            MaxChaRte_SF=w_sf,
            MaxDisChaRte_SF=w_sf,
        )
        image.scale(121, WMax_SF=w_sf, VRef_SF=0, VRefOfs_SF=0, VAMax_SF=w_sf)
        image.scale(123, WMaxLimPct_SF=-1, OutPFSet_SF=-3, VArPct_SF=-1)
        image.scale(
            124, WChaMax_SF=w_sf, WChaDisChaGra_SF=0, ChaState_SF=-1, InBatV_SF=-1, InOutWRte_SF=-2
        )
        image.set(1, {**COMMON, 'Md': 'storage inverter', 'SN': self.unit_name})
        image.set(
            120,
            {
                'DERTyp': 82,
                'WRtg': self._discharge,
                'VARtg': va,
                'MaxChaRte': self._charge,
                'MaxDisChaRte': self._discharge,
            },
        )
        image.set(121, {'WMax': self._discharge, 'VAMax': va, 'VRef': 230})
        image.set(
            123,
            {
                'Conn': 1,
                'WMaxLimPct': 100,
                'WMaxLim_Ena': 0,
                'VArWMaxPct': 0,
                'VArPct_RvrtTms': 0,
                'VArPct_Mod': 1,
                'VArPct_Ena': 0,
            },
        )
        image.set(
            124,
            {
                'WChaMax': self._charge,
                'StorCtl_Mod': 0,
                'OutWRte': 0,
                'InWRte': 0,
                'InOutWRte_WinTms': 0,
                'InOutWRte_RvrtTms': 0,
                'ChaGriSet': 1,
            },
        )

    def _measure(self) -> Callable[[], None]:
        three = self._phases == 3
        put = self._setters(
            self.measurement,
            'A',
            'AphA',
            'PhVphA',
            'W',
            'Hz',
            'VA',
            'VAr',
            'PF',
            'WH',
            'DCA',
            'DCV',
            'DCW',
            'TmpCab',
            'St',
            'Evt1',
            *(('AphB', 'AphC', 'PhVphB', 'PhVphC') if three else ()),
        )
        letters = 'ABC' if three else 'A'

        def refresh() -> None:
            sample = self.plant.inverter(self.unit_name)
            p, q = -sample.active_power, -sample.reactive_power
            s = hypot(p, q)
            put['W'](p)
            put['VA'](s)
            put['VAr'](q)
            put['PF'](p / s if s > 0 else 1.0)
            put['Hz'](sample.frequency)
            put['WH'](sample.energy_export)
            put['DCA'](abs(sample.dc_current))
            put['DCV'](sample.dc_voltage)
            put['DCW'](-sample.dc_power)
            put['TmpCab'](sample.temperature)
            put['St'](MPPT if self.image.raw(123, 'Conn') == 1 and sample.running else OFF)
            put['Evt1'](self.alarms)
            total = 0.0
            for n, letter in enumerate(letters):
                voltage = sample.voltage[n]
                current = s / len(letters) / voltage if voltage > 0 else 0.0
                total += current
                put[f'Aph{letter}'](current)
                put[f'PhVph{letter}'](voltage)
            put['A'](total)

        return refresh

    def _storage(self) -> Callable[[], None]:
        put = self._setters(124, 'ChaState', 'InBatV', 'ChaSt')

        def refresh() -> None:
            pack = self.plant.pack(self.unit_name)
            put['ChaState'](100 * pack.soc)
            put['InBatV'](pack.voltage)
            put['ChaSt'](4 if pack.current > 0.05 else 3 if pack.current < -0.05 else 6)

        return refresh

    def _written(self, changes: Mapping[str, int]) -> None:
        image, now = self.image, self.clock()
        take_legacy(image, dict(changes))
        if any(name.startswith('124.') for name in changes):
            self._w_timer.start(
                now, image.raw(124, 'InOutWRte_RvrtTms') if image.raw(124, 'StorCtl_Mod') else 0
            )
        if any(name.startswith('123.VAr') for name in changes):
            self._var_timer.start(
                now, image.raw(123, 'VArPct_RvrtTms') if image.raw(123, 'VArPct_Ena') == 1 else 0
            )
        self._apply()

    def _revert_power(self) -> None:
        self.image.set(124, {'StorCtl_Mod': 0, 'OutWRte': 0, 'InWRte': 0})
        self._apply()

    def _revert_reactive(self) -> None:
        self.image.set(123, {'VArPct_Ena': 0, 'VArWMaxPct': 0})
        self._apply()

    def _apply(self) -> None:
        """Order of the plant (+ = charging) from the registers, within the ratings."""
        image = self.image
        p = q = 0.0
        if image.raw(123, 'Conn') == 1:
            bits = image.raw(124, 'StorCtl_Mod')
            charge = image.value(124, 'InWRte') / 100 * image.value(124, 'WChaMax')
            discharge = image.value(124, 'OutWRte') / 100 * self._discharge
            if bits == CHARGE | DISCHARGE:
                p = min(max(0.0, -discharge), charge)
            elif bits:
                p = charge if bits == CHARGE else -discharge
            most = self._discharge
            if image.raw(123, 'WMaxLim_Ena') == 1:
                most = min(most, image.value(123, 'WMaxLimPct') / 100 * image.value(121, 'WMax'))
            p = max(min(p, self._charge, image.value(124, 'WChaMax')), -most)
            if image.raw(123, 'VArPct_Ena') == 1 and image.raw(123, 'VArPct_Mod') == 1:
                q = 0.0 - image.value(123, 'VArWMaxPct') / 100 * image.value(121, 'WMax')
        room = sqrt(max(0.0, image.value(121, 'VAMax') ** 2 - p * p))
        self.plant.set_inverter(self.unit_name, p, min(max(q, -room), room), nan)
