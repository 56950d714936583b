"""Writes power orders to an older SunSpec inverter: 123 or 124, start and stop through 64800 where it is there."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan, nan

from bess_drivers.device import BadValue, Refused
from bess_drivers.sunspec.codec import ModelValues
from bess_drivers.sunspec.control_common import (
    INVERTER_MODELS,
    LOCAL,
    OFF,
    SHUTTING_DOWN,
    SLEEPING,
    STANDBY,
    Timer,
    check_reactive,
    revert_seconds,
    run_all,
)
from bess_drivers.sunspec.device_map import DeviceMap
from bess_drivers.sunspec.inverter_decode import first_known
from bess_drivers.sunspec.inverter_params import POWER_SIGNS, REACTIVE_SIGNS, SunSpecInverterParams

PCS_START, PCS_STOP, PCS_EXIT_STANDBY = 1, 2, 4  # 64800 PCSSetOperation: other codes than 715
STORAGE_CHARGE, STORAGE_DISCHARGE = 1, 2  # bits of 124 StorCtl_Mod


class LegacyControl:
    """Orders through 124 (storage) or 123 (signed limit); rates are % of the device's maximum."""

    def __init__(
        self, device: DeviceMap, params: SunSpecInverterParams, clock: Callable[[], float]
    ) -> None:
        self._map, self._params = device, params
        self._timer, self._q_timer = Timer(clock), Timer(clock)
        self._signed = params.legacy_control == 'signed_limit'
        self._model = 123 if self._signed else 124
        self._control: ModelValues | None = (
            None  # of self._model, as read when the first order was given
        )
        self._immediate: ModelValues | None = None  # 123
        self._bits = -1  # StorCtl_Mod as written last
        self._references = (nan, nan, nan)  # W: charging, discharging, WMax
        self._q_armed = self._q_touched = self._pf_touched = False
        self._q_value = nan
        self.power = self.reactive = nan  # W and var, last order

    def forget(self) -> None:
        """The device may have restarted: begin again with the next order."""
        self._control, self._immediate, self._bits, self._q_armed = None, None, -1, False

    @property
    def without_timer(self) -> bool:
        """Whether an order stands in a device that would not drop it by itself."""
        name = 'WMaxLimPct_RvrtTms' if self._signed else 'InOutWRte_RvrtTms'
        return self._control is not None and not self._control.has(name)

    def observe(self, control: ModelValues) -> list[str]:
        """As `DerControl.observe`; `control` is 123 or 124, whichever takes the power."""
        if self._control is None:
            return []
        name = 'WMaxLim_Ena' if self._signed else 'StorCtl_Mod'
        if control.integer(name) == (1 if self._signed else self._bits):
            return []
        self.forget()
        return [name]

    def order(self, power: float, reactive: float, lease: float) -> None:
        """See `ConverterDevice.write_power`."""
        seconds = revert_seconds(lease, 0xFFFE)
        reactive = check_reactive(self._params, reactive)
        control = self._control or self._prepare()
        write_power = self._signed_limit if self._signed else self._storage
        apply_power = write_power(power, control, seconds)
        apply_reactive = self._reactive_order(
            reactive, seconds
        )  # raises before anything is written
        apply_power()
        apply_reactive()
        self._control, self.power = control, float(power)
        if not isnan(reactive):
            self.reactive = float(reactive)

    def _prepare(self) -> ModelValues:
        wanted = {self._model: 0, **{m: 0 for m in (120, 121, 123) if self._map.has(m)}}
        models = self._map.read_models(wanted)
        settings, nameplate = models.get(121), models.get(120)
        w_max = first_known(
            settings.number('WMax') if settings else nan,
            nameplate.number('WRtg') if nameplate else nan,
        )
        charge = nan if self._signed else models[124].number('WChaMax')
        discharge = first_known(nameplate.number('MaxDisChaRte') if nameplate else nan, charge)
        self._references = (charge, discharge, w_max)
        self._immediate = models.get(123)
        self._check_extras(settings)
        currents = self._battery_currents()
        self._start_pcs()
        if currents is not None:
            self._map.write(64800, *currents)
        if self._immediate and self._params.start_on_order and self._immediate.integer('Conn') == 0:
            self._map.write(123, {'Conn': 1}, {})
        self._write_extras(settings)
        return models[self._model]

    def _battery_currents(self) -> tuple[dict[str, float], dict[str, int]] | None:
        """What 64800 is to be told about the battery, with its scale factors. Raises `BadValue`."""
        p = self._params
        if not (isnan(p.battery_min_voltage) and isnan(p.battery_max_voltage)):
            raise BadValue('the voltages of the battery are for 64202: this device has none')
        wanted = {name: value for name, value in (('MaxBatACha', p.battery_charge_current),
                                                  ('MaxBatADischa', p.battery_discharge_current)) if not isnan(value)}
        if not wanted:
            return None
        if not self._map.has(64800):
            raise BadValue(f'the limits of the battery current cannot be written: {self._map.problem(64800)}')
        scales = self._map.read(64800).sf
        for name, value in wanted.items():
            self._map.encode(64800, name, value, scales)
        return wanted, scales

    def _check_extras(self, settings: ModelValues | None) -> None:
        p, immediate = self._params, self._immediate
        if not isnan(p.ramp) and not (settings and settings.has('WGra')):
            raise BadValue('121 WGra is not implemented in this device')
        if not isnan(p.power_factor) and not (immediate and immediate.has('OutPFSet_Ena')):
            raise BadValue('123 OutPFSet is not implemented in this device')

    def _write_extras(self, settings: ModelValues | None) -> None:
        """Ramp and power factor of the site file. SunSpec leaves the sign of OutPFSet open: as it is given."""
        p, immediate = self._params, self._immediate
        if settings and not isnan(p.ramp) and settings.number('WGra') != p.ramp:
            self._map.write(121, {'WGra': p.ramp}, settings.sf)
        if immediate and not isnan(p.power_factor):
            self._map.write(123, {'OutPFSet': p.power_factor}, immediate.sf)
            self._map.write(123, {'OutPFSet_Ena': 1}, {})
            self._pf_touched = True

    def _start_pcs(self) -> None:
        if not self._map.has(64800):
            return
        if self._map.read(64800).integer('LocRemCtl') == LOCAL:
            raise Refused('the inverter is in local control')
        model = self._map.first_of(*INVERTER_MODELS)
        if not self._params.start_on_order or not model:
            return
        state = (self._map.read(model).integer('St') or 0) - 1  # St is one higher than 701 InvSt
        if state in (OFF, SLEEPING, SHUTTING_DOWN):
            self._map.write(64800, {'PCSSetOperation': PCS_START}, {})
        elif state == STANDBY:
            self._map.write(64800, {'PCSSetOperation': PCS_EXIT_STANDBY}, {})

    def _percent(self, power: float, reference: float, name: str) -> float:
        if power == 0:
            return 0.0  # of whatever maximum
        if not reference > 0:
            raise BadValue(f'{name}, to which the rate refers, is not known')
        percent = 100 * power / reference
        if not abs(percent) <= 100.001:
            raise BadValue(f'{power:g} W is {percent:g} % of {name} = {reference:g} W')
        return percent

    def _storage(self, power: float, control: ModelValues, seconds: int) -> Callable[[], None]:
        charge, discharge, _ = self._references
        charging = (
            self._percent(power, charge, '124 WChaMax')
            if power >= 0 or self._params.legacy_control == 'forced'
            else 0.0
        )
        discharging = (
            self._percent(-power, discharge, 'maximum discharge rate')
            if power < 0 or self._params.legacy_control == 'forced'
            else 0.0
        )
        if self._params.legacy_control == 'forced':
            bits = STORAGE_CHARGE | STORAGE_DISCHARGE
        else:
            # at zero the direction stays as it is: both rates are zero
            bits = (
                STORAGE_DISCHARGE
                if power < 0 or (power == 0 and self._bits == 2)
                else STORAGE_CHARGE
            )
        values = {'OutWRte': discharging, 'InWRte': charging}
        has_timer = control.has('InOutWRte_RvrtTms')
        if has_timer:
            values['InOutWRte_RvrtTms'] = (
                seconds  # its window sits between: written too, for one request
            )
            if control.has('InOutWRte_WinTms'):
                values['InOutWRte_WinTms'] = 0
        for name, value in values.items():
            self._map.encode(124, name, value, control.sf)

        def apply() -> None:
            self._map.write(124, values, control.sf)
            if bits != self._bits or (has_timer and self._timer.due(seconds)):
                self._map.write(124, {'StorCtl_Mod': bits}, control.sf)
                self._timer.written(seconds)
            self._bits = bits

        return apply

    def _signed_limit(self, power: float, control: ModelValues, seconds: int) -> Callable[[], None]:
        percent = (
            self._percent(power, self._references[2], 'WMax') * POWER_SIGNS[self._params.power_sign]
        )
        # same scale factor, but a type with a sign
        register = self._map.encode(
            123,
            'VArWMaxPct',
            percent,
            {'VArPct_SF': control.sf['WMaxLimPct_SF']} if 'WMaxLimPct_SF' in control.sf else {},
        )[0]
        fresh = self._control is None

        def apply() -> None:
            self._map.write_raw(123, 'WMaxLimPct', register)
            if fresh or self._timer.due(seconds):
                if control.has('WMaxLimPct_RvrtTms'):
                    self._map.write(123, {'WMaxLimPct_RvrtTms': seconds}, {})
                self._map.write(123, {'WMaxLim_Ena': 1}, {})
                self._timer.written(seconds)

        return apply

    def _reactive_order(self, reactive: float, seconds: int) -> Callable[[], None]:
        immediate = self._immediate
        possible = (
            immediate is not None and immediate.has('VArPct_Ena') and 'VArPct_SF' in immediate.sf
        )
        if isnan(reactive) or (reactive == 0 and not possible):
            return lambda: None
        if immediate is None or not possible:
            raise BadValue('this device takes no reactive power (123 VArPct)')
        percent = (
            self._percent(reactive, self._references[2], 'WMax')
            * REACTIVE_SIGNS[self._params.reactive_sign]
        )
        sf, has = immediate.sf, immediate.has
        self._map.encode(123, 'VArWMaxPct', percent, sf)

        def apply() -> None:
            due = not self._q_armed or self._q_timer.due(seconds)
            if percent == self._q_value and not due:
                return
            self._q_touched = True
            self._map.write(123, {'VArWMaxPct': percent}, sf)
            self._q_value = percent
            if due:
                more = {'VArPct_RvrtTms': seconds} if has('VArPct_RvrtTms') else {}
                self._map.write(123, {**more, 'VArPct_Mod': 1}, sf)
                self._map.write(123, {'VArPct_Ena': 1}, sf)
                self._q_timer.written(seconds)
                self._q_armed = True

        return apply

    def stop(self) -> None:
        """Zero and disable; everything is tried even if the device refuses a part."""
        zero = {
            'InOutWRte_SF': 0,
            'VArPct_SF': 0,
            'WMaxLimPct_SF': 0,
        }  # zero is zero under every scale

        def write(model: int, name: str, *more: str) -> Callable[[], None]:
            return lambda: self._map.write(model, dict.fromkeys((name, *more), 0), zero)

        if self._signed:
            steps = [write(123, 'WMaxLimPct'), write(123, 'WMaxLim_Ena')]
        else:
            steps = [write(124, 'OutWRte', 'InWRte'), write(124, 'StorCtl_Mod')]
        if self._q_touched:
            steps += [write(123, 'VArWMaxPct'), write(123, 'VArPct_Ena')]
        if self._pf_touched:
            steps.append(write(123, 'OutPFSet_Ena'))
        if self._params.off_on_stop and self._map.has(64800):
            steps.append(lambda: self._map.write(64800, {'PCSSetOperation': PCS_STOP}, {}))
        elif self._params.off_on_stop and self._map.has(123):
            steps.append(write(123, 'Conn'))
        self.forget()
        self.power, self.reactive = 0.0, nan
        run_all(steps)
        self._q_touched = self._pf_touched = False
