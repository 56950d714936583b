"""Settings of a SunSpec inverter."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

from bess_core.params import param
from bess_drivers.sunspec.common import SIGNS, SunSpecParams, check_params

#: factor from the device's sign to ours (+ = charging; + var = into the converter, inductive)
POWER_SIGNS = {'generation_positive': -1.0, 'charge_positive': 1.0}
REACTIVE_SIGNS = {'injection_positive': -1.0, 'absorption_positive': 1.0}
#: setting with a curve -> models that can hold it, the first of them that the device has is used
CURVE_SETTINGS = {'volt_var': (705, 126), 'volt_watt': (706, 132), 'watt_var': (712,), 'watt_power_factor': (131,),
                  'freq_watt': (134,)}
LEGACY_CONTROLS = ('direct', 'forced', 'signed_limit')


@dataclass(frozen=True)
class SunSpecInverterParams(SunSpecParams):
    """Where the inverter is, its signs, and how an older one (models 123, 124) takes a power."""

    power_sign: str = param(
        'generation_positive',
        doc='sign of W (701, 101 to 113) and WSet (704); SunSpec 701: + = generation', choices=tuple(POWER_SIGNS))
    reactive_sign: str = param(
        'injection_positive',
        doc='sign of Var (701), VAr (101 to 113), VarSet (704) and VArWMaxPct (123); IEEE 1547: + = injection '
            '(over-excited)', choices=tuple(REACTIVE_SIGNS))
    dc_sign: str = param('discharge_positive', doc='sign of DCA and DCW (714, 101 to 113)', choices=tuple(SIGNS))
    legacy_control: str = param(
        'direct',
        doc="how a device without 704 takes a power: 'direct' = 124 with one bit of StorCtl_Mod and its rate; "
            "'forced' = 124 with both bits and rates of opposite sign (devices that take the rates as limits); "
            "'signed_limit' = 123 WMaxLimPct with a sign", choices=LEGACY_CONTROLS)
    power_factor: float = param(
        nan, doc='power factor that the device holds while an order is there (704 PFWInj and PFWAbs, 123 OutPFSet); '
            'negative = under-excited (absorbing reactive power); NaN = leave it as it is', low=-1.0, high=1.0)
    ramp: float = param(
        nan, '%/s', 'ramp of the device in % of its maximum per second (704 WRmp, 121 WGra); NaN = leave it as it is',
        low=0.01, high=65534.0)
    battery_charge_current: float = param(
        nan, 'A', 'largest DC current into the battery (64800 MaxBatACha, 64202 ChaMaxA); NaN = leave it', low=0.0,
        high=65534.0)
    battery_discharge_current: float = param(
        nan, 'A', 'largest DC current out of the battery (64800 MaxBatADischa, 64202 DisMaxA); NaN = leave it',
        low=0.0, high=65534.0)
    battery_min_voltage: float = param(
        nan, 'V', 'DC voltage down to which the battery is discharged (64202 DisMinV); NaN = leave it', low=0.0,
        high=65534.0)
    battery_max_voltage: float = param(
        nan, 'V', 'DC voltage up to which the battery is charged (64202 ChaMaxV); NaN = leave it', low=0.0,
        high=65534.0)
    volt_var: list[float] = param([], '', 'curve of 705 or 126 that the device is to hold: V (% of nominal), var (%), '
                                          '...; empty = leave it as it is')
    volt_watt: list[float] = param([], '', 'the same of 706 or 132: V (% of nominal), W (%), ...')
    watt_var: list[float] = param([], '', 'the same of 712: W (% of the maximum), var (%), ...')
    watt_power_factor: list[float] = param([], '', 'the same of 131: W (% of the maximum), power factor, ...')
    freq_watt: list[float] = param([], '', 'the same of 134: frequency (Hz), W (% of the reference), ...')
    freq_watt_slope: list[float] = param([], '', 'of 127: slope (% of the present power per Hz), where it begins and '
                                                 'ends (Hz above nominal); empty = leave it as it is')
    freq_droop: list[float] = param([], '', 'of 711: dead band above and below (Hz), slopes above and below (per '
                                            'unit), response (s); empty = leave it as it is')
    enter_service: list[float] = param([], '', 'of 703: lowest and highest voltage (% of nominal), lowest and highest '
                                               'frequency (Hz), delay (s), ramp (s); empty = leave it as it is')
    permit_service: str = param(
        'leave', doc='whether the device may enter service (703 ES)',
                                choices=['leave', 'on', 'off'])
    start_on_order: bool = param(
        True, doc='start (715 OpCtl) or connect (123 Conn) a device that is off with an order')
    off_on_stop: bool = param(False, doc='stop() also stops (715 OpCtl) or disconnects (123 Conn) the device')
    heartbeat: bool = param(
        False, doc='write 715 (or 64800) ControllerHb, +1 every second, while the device is read')
    heartbeat_timeout_s: float = param(
        5.0, 's', 'an inverter whose 715 DERHb or 64800 PCSHb stops counting for longer is reported as stale',
        low=1.5, high=3600.0)

    def __post_init__(self) -> None:
        check_params(self)
        for name in CURVE_SETTINGS:
            count = len(getattr(self, name))
            if count % 2 or count == 2:
                raise ValueError(f'{name} has {count} numbers: must be pairs x, y of at least two points')
        for name, count in (('freq_droop', 5), ('enter_service', 6), ('freq_watt_slope', 3)):
            if len(getattr(self, name)) not in (0, count):
                raise ValueError(f'{name} has {len(getattr(self, name))} numbers: must be {count}')
