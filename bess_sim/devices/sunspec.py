"""Simulated SunSpec devices as register maps from register 40000: inverters and batteries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bess_sim.devices.sunspec_base import COMMON, SunSpecDevice, monotonic, scale_for
from bess_sim.devices.sunspec_der import DerInverter
from bess_sim.devices.sunspec_image import SunSpecImage
from bess_sim.devices.sunspec_legacy import LegacyInverter
from bess_sim.plant_api import PackSample, PlantApi

__all__ = ['BatteryThresholds', 'SunSpecBatterySimulator', 'SunSpecInverterSimulator']

DISCONNECTED, CONNECTED = 1, 3  # 802 State
CONNECT = 1  # 802 SetOp
EMPTY, DISCHARGING, CHARGING, FULL, HOLDING = 2, 3, 4, 5, 6  # 802 ChaSt


def SunSpecInverterSimulator(
    plant: PlantApi, unit_name: str, models: str = 'der', **options: Any
) -> SunSpecDevice:
    """An inverter with the 'der' models (701 and on) or the 'legacy' ones (101 or 103, 120 to 124).

    `options`: see `DerInverter` and `LegacyInverter`. Raises ValueError for other `models`.
    """
    kinds: dict[str, Callable[..., SunSpecDevice]] = {'der': DerInverter, 'legacy': LegacyInverter}
    if models not in kinds:
        raise ValueError(f"models = {models!r}: must be 'der' or 'legacy'")
    return kinds[models](plant, unit_name, **options)


@dataclass(frozen=True)
class BatteryThresholds:
    """Where the battery warns and alarms: (warning, alarm) each."""

    cell_high: tuple[float, float] = (3.60, 3.65)  # V
    cell_low: tuple[float, float] = (2.80, 2.50)  # V
    temperature_high: tuple[float, float] = (50.0, 60.0)  # degC
    temperature_low: tuple[float, float] = (0.0, -20.0)  # degC
    soc_high: tuple[float, float] = (1.01, 1.05)
    soc_low: tuple[float, float] = (0.02, -1.0)
    imbalance: float = 0.3  # V between highest and lowest cell

    def events(self, pack: PackSample) -> int:
        """802 Evt1 bits of a pack."""
        bits = 0

        def compare(
            value: float,
            low: tuple[float, float],
            high: tuple[float, float],
            low_bit: int,
            high_bit: int,
        ) -> None:
            nonlocal bits
            for offset, n in ((1, 0), (0, 1)):  # the alarm's bit comes before the warning's
                bits |= (value > high[n]) << high_bit + offset | (
                    value < low[n]
                ) << low_bit + offset

        for temperature in pack.temperatures:
            compare(temperature, self.temperature_low, self.temperature_high, 3, 1)
        if pack.cells:
            for cell in (min(pack.cells), max(pack.cells)):
                compare(cell, self.cell_low, self.cell_high, 11, 9)
            bits |= (max(pack.cells) - min(pack.cells) > self.imbalance) << 17
        compare(pack.soc, self.soc_low, self.soc_high, 13, 15)
        bits |= (pack.current > 1.05 * pack.max_charge_current + 0.5) << 6
        bits |= (-pack.current > 1.05 * pack.max_discharge_current + 0.5) << 8
        return bits


class SunSpecBatterySimulator(SunSpecDevice):
    """A battery with models 1, 802 and 803 (one string). `sign` of A and W: +1 = charging positive.

    SetOp opens and closes both paths of the pack at once. `local` = in local control,
    `inverter_stop` = the battery asks the inverter to stop. Attributes may be changed at run time.
    """

    def __init__(
        self,
        plant: PlantApi,
        unit_name: str,
        *,
        sign: int = 1,
        thresholds: BatteryThresholds = BatteryThresholds(),
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.plant, self.unit_name, self.sign, self.thresholds = plant, unit_name, sign, thresholds
        self.local = False
        self.inverter_stop = False
        self.events = 0  # Evt1 bits added to those of the thresholds
        self.string_events = 0  # the same of 803 StrEvt1
        super().__init__(SunSpecImage({1: 0, 802: 0, 803: 1}), clock, background=False)
        self._fill(plant.pack(unit_name))
        self._live = {802: self._bank(), 803: self._string()}

    def _fill(self, pack: PackSample) -> None:
        image = self.image
        w = 1.2 * pack.voltage * max(pack.max_charge_current, pack.max_discharge_current, 1.0)
        image.scale(
            802,
            AHRtg_SF=scale_for(pack.charge_full) - 1,
            WHRtg_SF=scale_for(pack.energy_full),
            WChaDisChaMax_SF=scale_for(w),
            SoC_SF=-1,
            SoH_SF=-1,
            DoD_SF=-1,
            V_SF=scale_for(10 * pack.voltage) - 1,
            CellV_SF=-3,
            A_SF=-1,
            AMax_SF=-1,
            W_SF=scale_for(w),
        )
        image.scale(
            803,
            CellV_SF=-3,
            ModTmp_SF=-1,
            A_SF=-1,
            SoH_SF=-1,
            SoC_SF=-1,
            V_SF=scale_for(10 * pack.voltage) - 1,
        )
        soh = pack.soh if pack.soh > 0 else 1.0
        image.set(1, {**COMMON, 'Md': 'battery', 'SN': self.unit_name})
        image.set(
            802,
            {
                'AHRtg': pack.charge_full / soh,
                'WHRtg': pack.energy_full / soh,
                'Typ': 4,
                'LocRemCtl': 0,
                'Hb': 0,
                'CtrlHb': 0,
                'AlmRst': 0,
                'SetOp': CONNECT,
                'SetInvState': 1,
                'Evt2': 0,
                'EvtVnd1': 0,
                'EvtVnd2': 0,
                'ReqInvState': 0,
            },
        )
        image.set(803, {'NStr': 1, 'string[0].StrNMod': 1, 'string[0].StrConFail': 0})

    def _bank(self) -> Callable[[], None]:
        put = self._setters(
            802,
            'WChaRteMax',
            'WDisChaRteMax',
            'SoC',
            'DoD',
            'SoH',
            'NCyc',
            'ChaSt',
            'LocRemCtl',
            'Hb',
            'State',
            'Evt1',
            'V',
            'CellVMax',
            'CellVMin',
            'CellVAvg',
            'A',
            'AChaMax',
            'ADisChaMax',
            'W',
            'ReqInvState',
        )

        def refresh() -> None:
            pack = self.plant.pack(self.unit_name)
            connected = pack.charge_switch or pack.discharge_switch
            put['WChaRteMax'](pack.max_charge_current * pack.voltage)
            put['WDisChaRteMax'](pack.max_discharge_current * pack.voltage)
            put['SoC'](100 * pack.soc)
            put['DoD'](100 * (1 - pack.soc))
            put['SoH'](100 * pack.soh)
            put['NCyc'](pack.cycles)
            put['ChaSt'](_charge_state(pack))
            put['LocRemCtl'](self.local)
            put['Hb'](self.uptime() % 0xFFFF)
            put['State'](CONNECTED if connected else DISCONNECTED)
            put['Evt1'](self.thresholds.events(pack) | self.events)
            put['V'](pack.voltage)
            if pack.cells:
                put['CellVMax'](max(pack.cells))
                put['CellVMin'](min(pack.cells))
                put['CellVAvg'](sum(pack.cells) / len(pack.cells))
            put['A'](self.sign * pack.current)
            # the single paths are not visible in 802 but through the limits
            put['AChaMax'](pack.max_charge_current if pack.charge_switch else 0.0)
            put['ADisChaMax'](pack.max_discharge_current if pack.discharge_switch else 0.0)
            put['W'](self.sign * pack.current * pack.voltage)
            put['ReqInvState'](2 if self.inverter_stop else 0)

        return refresh

    def _string(self) -> Callable[[], None]:
        put = self._setters(
            803,
            'NStrCon',
            'ModTmpMax',
            'ModTmpMin',
            'ModTmpAvg',
            'StrVMax',
            'StrVMin',
            'NCellBal',
            *(
                f'string[0].Str{n}'
                for n in (
                    'St',
                    'SoC',
                    'SoH',
                    'A',
                    'CellVMax',
                    'CellVMin',
                    'CellVAvg',
                    'ModTmpMax',
                    'ModTmpMin',
                    'ModTmpAvg',
                    'Evt1',
                )
            ),
        )

        def refresh() -> None:
            pack = self.plant.pack(self.unit_name)
            connected = pack.charge_switch or pack.discharge_switch
            put['NStrCon'](connected)
            put['StrVMax'](pack.voltage)
            put['StrVMin'](pack.voltage)
            put['NCellBal'](sum(pack.balancing))
            put['string[0].StrSt'](0b11 if connected else 0b01)
            put['string[0].StrSoC'](100 * pack.soc)
            put['string[0].StrSoH'](100 * pack.soh)
            put['string[0].StrA'](self.sign * pack.current)
            put['string[0].StrEvt1'](self.thresholds.events(pack) & ~(1 << 24) | self.string_events)
            for names, values in (
                (('string[0].StrCellV',), pack.cells),
                (('string[0].StrModTmp', 'ModTmp'), pack.temperatures),
            ):
                if values:
                    for name in names:
                        put[f'{name}Max'](max(values))
                        put[f'{name}Min'](min(values))
                        put[f'{name}Avg'](sum(values) / len(values))

        return refresh

    def _written(self, changes: Mapping[str, int]) -> None:
        if '802.SetOp' in changes and not self.local:
            connect = changes['802.SetOp'] == CONNECT
            self.plant.set_switches(self.unit_name, connect, connect)
        if changes.get('802.AlmRst') == 1:
            self.events = 0
            self.image.set(802, {'AlmRst': 0})


def _charge_state(pack: PackSample) -> int:
    if abs(pack.current) > 0.05:
        return CHARGING if pack.current > 0 else DISCHARGING
    return FULL if pack.soc >= 0.999 else EMPTY if pack.soc <= 0.001 else HOLDING
