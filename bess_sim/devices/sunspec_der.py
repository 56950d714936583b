"""Simulated SunSpec DER inverter: models 1, 701, 702, 704, 713, 714, 715, and 703, 705 to 712 where asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import hypot, isnan, nan, sqrt

from bess_sim.devices.modbus_pdu import IllegalValue
from bess_sim.devices.sunspec_base import COMMON, SunSpecDevice, monotonic, scale_for
from bess_sim.devices.sunspec_curves import CURVES, ELEMENTS, adopt, adopt_droop, fill_grid
from bess_sim.devices.sunspec_image import SunSpecImage
from bess_sim.plant_api import InverterSample, PlantApi

STOP, START, ENTER_STANDBY, EXIT_STANDBY = 0, 1, 2, 3  # 715 OpCtl
OFF, RUNNING, STANDBY = 0, 3, 7  # 701 InvSt
REARM = ('any', 'timer', 'enable')
#: 704 VarSetMod / WSetMod -> the maximum of 702 to which the percentage refers
VAR_REFERENCES = {0: 'WMax', 1: 'VarMaxInj', 2: 'VarMaxInj', 3: 'VAMax'}
WATTS, VARS = 1, 4


def phases_of(sample: InverterSample) -> int:
    """Number of phases that carry a voltage, at least 1."""
    return max(1, sum(not isnan(v) for v in sample.voltage))


class DerInverter(SunSpecDevice):
    """Signs in the registers: + = generation, + var = injection; DC + = discharge.

    A setpoint acts only while its Ena is 1, is held within the ratings, and reverts by itself after
    RvrtTms. `rearm` says which writes start that time anew: 'any' of Ena, setpoint and RvrtTms, or
    the 'timer' (RvrtTms) or the 'enable' alone; real devices differ. `local` = in local control.
    `curves`: with the grid functions 703 and 705 to 712; of them only 703 ES acts (0 = off the grid).
    """

    def __init__(
        self,
        plant: PlantApi,
        unit_name: str,
        *,
        rearm: str = 'any',
        curves: bool = False,
        started: bool = True,
        clock: Callable[[], float] = monotonic,
        background: bool = True,
    ) -> None:
        if rearm not in REARM:
            raise ValueError(f'rearm = {rearm!r}: must be one of {", ".join(REARM)}')
        self.plant, self.unit_name, self.rearm = plant, unit_name, rearm
        self.local = False
        self.alarms = 0  # 701 Alrm bits
        self.started, self.standby = started, False
        sample = plant.inverter(unit_name)
        self._phases = phases_of(sample)
        more = ELEMENTS if curves else {}
        image = SunSpecImage(dict(sorted({1: 0, 701: 0, 702: 0, 704: 0, 713: 0, 714: 1, 715: 0, **more}.items())))
        self._curves = curves
        super().__init__(image, clock, background)
        self._fill(sample)
        if curves:
            fill_grid(image)
        self._live = {
            701: self._measure(),
            704: self._remaining(),
            713: self._storage(),
            714: self._dc(),
            715: self._operation(),
        }
        self._w_timer = self._timer(lambda: self._revert('WSet'))
        self._var_timer = self._timer(lambda: self._revert('VarSet'))

    def _fill(self, sample: InverterSample) -> None:
        image = self.image
        largest = max(
            sample.max_charge_power, sample.max_discharge_power, sample.max_apparent_power
        )
        w_sf = scale_for(largest)
        image.scale(
            701,
            W_SF=w_sf,
            VA_SF=w_sf,
            Var_SF=w_sf,
            PF_SF=-3,
            A_SF=-1,
            V_SF=-1,
            Hz_SF=-3,
            TotWh_SF=0,
            TotVarh_SF=0,
            Tmp_SF=-1,
        )
        image.scale(702, W_SF=w_sf, VA_SF=w_sf, Var_SF=w_sf, V_SF=0, A_SF=-1, PF_SF=-3, S_SF=0)
        image.scale(
            704, WSet_SF=0, WSetPct_SF=-1, VarSet_SF=0, VarSetPct_SF=-1, WMaxLimPct_SF=-1, PF_SF=-3
        )
        image.scale(713, WH_SF=scale_for(self.plant.pack(self.unit_name).energy_full), Pct_SF=-1)
        image.scale(714, DCA_SF=-1, DCV_SF=-1, DCW_SF=w_sf, DCWH_SF=0, Tmp_SF=-1)
        image.set(1, {**COMMON, 'Md': 'DER inverter', 'SN': self.unit_name})
        ratings = {
            'WMax': largest,
            'VAMax': sample.max_apparent_power,
            'VarMaxInj': sample.max_apparent_power,
            'VarMaxAbs': sample.max_apparent_power,
            'WChaRteMax': sample.max_charge_power,
            'WDisChaRteMax': sample.max_discharge_power,
        }
        image.set(
            702,
            {
                **ratings,
                **{f'{name}Rtg': value for name, value in ratings.items()},
                'VNom': 230 if self._phases == 1 else 400,
                'CtrlModes': 0b111,
            },
        )
        image.set(
            704,
            {
                'WMaxLimPctEna': 0,
                'WMaxLimPct': 100,
                'WSetEna': 0,
                'WSetMod': WATTS,
                'WSet': 0,
                'WSetRvrt': 0,
                'WSetPct': 0,
                'WSetPctRvrt': 0,
                'WSetEnaRvrt': 0,
                'WSetRvrtTms': 0,
                'WSetRvrtRem': 0,
                'VarSetEna': 0,
                'VarSetMod': VARS,
                'VarSetPri': 0,
                'VarSet': 0,
                'VarSetRvrt': 0,
                'VarSetPct': 0,
                'VarSetPctRvrt': 0,
                'VarSetEnaRvrt': 0,
                'VarSetRvrtTms': 0,
                'VarSetRvrtRem': 0,
                'WRmp': 0,
            },
        )
        image.set(
            714, {'PrtAlrms': 0, 'NPrt': 1, 'Prt[0].PrtTyp': 1, 'Prt[0].ID': 1, 'Prt[0].DCSta': 1}
        )
        image.set(
            715,
            {
                'LocRemCtl': 0,
                'DERHb': 0,
                'ControllerHb': 0,
                'AlarmReset': 0,
                'OpCtl': START if self.started else STOP,
            },
        )

    def _measure(self) -> Callable[[], None]:
        names = [
            'ACType',
            'St',
            'InvSt',
            'ConnSt',
            'Alrm',
            'DERMode',
            'W',
            'VA',
            'Var',
            'PF',
            'A',
            'LNV',
            'Hz',
            'TotWhInj',
            'TotWhAbs',
            'TmpCab',
            'WL1',
            'VarL1',
            'AL1',
            'VL1',
        ]
        if self._phases == 3:
            names += ['WL2', 'VarL2', 'AL2', 'VL2', 'WL3', 'VarL3', 'AL3', 'VL3']
        put = self._setters(701, *names)
        put['ACType'](0 if self._phases == 1 else 2)
        put['DERMode'](1)
        phases = range(1, 1 + (3 if self._phases == 3 else 1))

        def refresh() -> None:
            sample = self.plant.inverter(self.unit_name)
            # the registers count generation and injection as positive
            p, q = -sample.active_power, -sample.reactive_power
            s = hypot(p, q)
            running = self.started and sample.running and self._permitted()
            put['St'](running)
            put['InvSt'](STANDBY if running and self.standby else RUNNING if running else OFF)
            put['ConnSt'](running)
            put['Alrm'](self.alarms)
            put['W'](p)
            put['VA'](s)
            put['Var'](q)
            put['PF'](p / s if s > 0 else 1.0)
            put['LNV'](sample.voltage[0])
            put['Hz'](sample.frequency)
            put['TotWhInj'](sample.energy_export)
            put['TotWhAbs'](sample.energy_import)
            put['TmpCab'](sample.temperature)
            total = 0.0
            for n in phases:
                voltage = sample.voltage[n - 1]
                current = s / len(phases) / voltage if voltage > 0 else 0.0
                total += current
                put[f'WL{n}'](p / len(phases))
                put[f'VarL{n}'](q / len(phases))
                put[f'AL{n}'](current)
                put[f'VL{n}'](voltage)
            put['A'](total)

        return refresh

    def _remaining(self) -> Callable[[], None]:
        put = self._setters(704, 'WSetRvrtRem', 'VarSetRvrtRem')

        def refresh() -> None:
            now = self.clock()
            put['WSetRvrtRem'](self._w_timer.remaining(now))
            put['VarSetRvrtRem'](self._var_timer.remaining(now))

        return refresh

    def _storage(self) -> Callable[[], None]:
        put = self._setters(713, 'WHRtg', 'WHAvail', 'SoC', 'SoH', 'Sta')

        def refresh() -> None:
            pack = self.plant.pack(self.unit_name)
            put['WHRtg'](pack.energy_full / pack.soh if pack.soh > 0 else nan)
            put['WHAvail'](pack.energy)
            put['SoC'](100 * pack.soc)
            put['SoH'](100 * pack.soh)
            put['Sta'](0)

        return refresh

    def _dc(self) -> Callable[[], None]:
        put = self._setters(714, 'DCA', 'DCW', 'Prt[0].DCA', 'Prt[0].DCV', 'Prt[0].DCW')

        def refresh() -> None:
            sample = self.plant.inverter(self.unit_name)
            for prefix in ('', 'Prt[0].'):
                put[prefix + 'DCA'](-sample.dc_current)
                put[prefix + 'DCW'](-sample.dc_power)
            put['Prt[0].DCV'](sample.dc_voltage)

        return refresh

    def _operation(self) -> Callable[[], None]:
        put = self._setters(715, 'LocRemCtl', 'DERHb')

        def refresh() -> None:
            put['LocRemCtl'](self.local)
            put['DERHb'](self.uptime() % 0xFFFFFFFF)

        return refresh

    def _check(self, changes: Mapping[str, int]) -> None:
        if self.local and any(name.startswith(('704.', '715.OpCtl')) for name in changes):
            raise IllegalValue
        for name, raw in changes.items():
            model, point = name.split('.', 1)
            if (
                model == '702'
                and point
                in ('WMax', 'VAMax', 'VarMaxInj', 'VarMaxAbs', 'WChaRteMax', 'WDisChaRteMax')
                and raw > self.image.raw(702, f'{point}Rtg')
            ):
                raise IllegalValue

    def _written(self, changes: Mapping[str, int]) -> None:
        for prefix, timer in (('WSet', self._w_timer), ('VarSet', self._var_timer)):
            if self.image.raw(704, f'{prefix}Ena') != 1:
                timer.stop()
                continue
            starters = {
                'any': (prefix, f'{prefix}Pct', f'{prefix}Ena', f'{prefix}RvrtTms'),
                'timer': (f'{prefix}RvrtTms',),
                'enable': (f'{prefix}Ena',),
            }[self.rearm]
            if any(f'704.{name}' in changes for name in starters):
                timer.start(self.clock(), self.image.raw(704, f'{prefix}RvrtTms'))
        for model in CURVES if self._curves else ():
            if f'{model}.AdptCrvReq' in changes:
                adopt(self.image, model)
        if '711.AdptCtlReq' in changes:
            adopt_droop(self.image)
        if '715.OpCtl' in changes:
            operation = changes['715.OpCtl']
            self.started = operation != STOP
            self.standby = operation == ENTER_STANDBY
        if changes.get('715.AlarmReset') == 1:
            self.alarms = 0
            self.image.set(715, {'AlarmReset': 0})
        if any(name.startswith(('702.', '703.', '704.', '715.OpCtl')) for name in changes):
            self._apply()

    def _permitted(self) -> bool:
        return not self._curves or self.image.raw(703, 'ES') == 1

    def _revert(self, prefix: str) -> None:
        image = self.image
        for name in (prefix, f'{prefix}Pct', f'{prefix}Ena'):
            source, target = image.point(704, f'{name}Rvrt'), image.point(704, name)
            image.registers[target.index : target.index + target.size] = image.registers[
                source.index : source.index + source.size
            ]
        self._apply()

    def _apply(self) -> None:
        """Order of the plant from the registers, within the ratings; P before Q on the circle."""
        image = self.image
        p = q = 0.0
        if self.started and not self.standby and self._permitted():
            if image.raw(704, 'WSetEna') == 1:
                watts = image.raw(704, 'WSetMod') == WATTS
                p = (
                    image.value(704, 'WSet')
                    if watts
                    else (image.value(704, 'WSetPct') / 100 * image.value(702, 'WMax'))
                )
            if image.raw(704, 'VarSetEna') == 1:
                mode = image.raw(704, 'VarSetMod')
                q = (
                    image.value(704, 'VarSet')
                    if mode == VARS
                    else (
                        image.value(704, 'VarSetPct') / 100 * image.value(702, VAR_REFERENCES[mode])
                    )
                )
        most = min(image.value(702, 'WDisChaRteMax'), image.value(702, 'WMax'))
        if image.raw(704, 'WMaxLimPctEna') == 1:
            most = min(most, image.value(704, 'WMaxLimPct') / 100 * image.value(702, 'WMax'))
        p = min(max(p, -image.value(702, 'WChaRteMax')), most)
        room = sqrt(max(0.0, image.value(702, 'VAMax') ** 2 - p * p))
        q = min(max(q, -room), room)
        ramp = image.value(704, 'WRmp') / 100 * image.value(702, 'WMax')
        self.plant.set_inverter(self.unit_name, 0.0 - p, 0.0 - q, ramp if ramp > 0 else nan)
