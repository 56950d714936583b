"""Grid functions of the simulated DER: 703, curves of 705, 706, 712, trips of 707 to 710, droop of 711.

Three curves of four points, of which the first shows what acts; trips have one set that cannot be written.
"""

from __future__ import annotations

from math import isnan

from bess_sim.devices.sunspec_image import SunSpecImage

#: model -> names of x and y of a point, of their scale factors
CURVES = {705: ('V', 'Var', 'V_SF', 'DeptRef_SF'), 706: ('V', 'W', 'V_SF', 'DeptRef_SF'),
          712: ('W', 'Var', 'W_SF', 'DeptRef_SF')}
COMPLETED, FAILED = 1, 2
#: what of the repeating groups there is, for `SunSpecImage`
ELEMENTS: dict[int, int | tuple[int, ...]] = {
    703: 0, **dict.fromkeys(CURVES, (3, 4)), **dict.fromkeys((707, 708, 709, 710), (1, 3)), 711: 2}
#: model -> (value, seconds) of its must-trip and its momentary cessation points
TRIPS = {707: (((50.0, 0.16), (88.0, 2.0)), ((45.0, 0.08),)), 708: (((120.0, 0.16), (110.0, 2.0)), ()),
         709: (((46.5, 0.16), (48.5, 300.0)), ()), 710: (((52.0, 0.16), (51.2, 300.0)), ())}
DROOP = {'DbOf': 0.036, 'DbUf': 0.036, 'KOf': 0.05, 'KUf': 0.05, 'RspTms': 5, 'PMin': -100}

#: older models (126 to 144) -> curves that there are; 131 has one only, which is written in place
LEGACY: dict[int, int] = {126: 2, 127: 0, 128: 0, 129: 1, 130: 1, 131: 1, 132: 2, 133: 2, 134: 3,
                          **dict.fromkeys(range(135, 145), 1)}
LEGACY_CURVES = {126: ('V', 'VAr', 'V_SF', 'DeptRef_SF'), 131: ('W', 'PF', 'W_SF', 'PF_SF'),
                 132: ('V', 'W', 'V_SF', 'DeptRef_SF'), 134: ('Hz', 'W', 'Hz_SF', 'W_SF')}
#: points of y of a flat curve: nothing changes
LEGACY_FLAT = {126: 0.0, 131: 1.0, 132: 100.0, 134: 100.0}
ROOM = 5


def fill_legacy(image: SunSpecImage) -> None:
    """Usual settings of 126 to 144: curves flat and off, trips on and not to be written."""
    switch = {'ActCrv': 1, 'ModEna': 0, 'WinTms': 0, 'RvrtTms': 0, 'RmpTms': 0, 'NPt': ROOM}
    for model, (x, y, x_sf, y_sf) in LEGACY_CURVES.items():
        image.scale(model, **{x_sf: -2, y_sf: -3 if model == 131 else -1})
        image.set(model, {**switch, 'NCrv': LEGACY[model]})
        for n in range(LEGACY[model]):
            image.set(model, {f'curve[{n}].ActPt': 2, f'curve[{n}].ReadOnly': 0})
            if model in (126, 132):
                image.set(model, {f'curve[{n}].DeptRef': 2})
            for k in range(ROOM):
                start = {'V': 90.0, 'W': 0.0, 'Hz': 49.0}[x]
                image.set(model, {f'curve[{n}].{x}{k + 1}': start + k, f'curve[{n}].{y}{k + 1}': LEGACY_FLAT[model]})
    image.scale(127, WGra_SF=-1, HzStrStop_SF=-2, RmpIncDec_SF=0)
    image.set(127, {'WGra': 40, 'HzStr': 0.2, 'HzStop': 0.2, 'HysEna': 0, 'ModEna': 0, 'HzStopWGra': 10})
    image.scale(128, ArGra_SF=-1, VRefPct_SF=0)
    image.set(128, {'ArGraMod': 0, 'ArGraSag': 2, 'ArGraSwell': 1.5, 'ModEna': 1, 'DbVMin': 90, 'DbVMax': 110})
    image.set(133, {'ActSchd': 0b10, 'ModEna': 1, 'NSchd': 2, 'NPts': 10})
    for model in (129, 130, *range(135, 145)):
        value = 'Hz' if 'Hz_SF' in image.names(model) else 'V'
        image.scale(model, Tms_SF=-2, **{f'{value}_SF': -2})
        image.set(model, {**switch, 'ModEna': 1, 'NCrv': 1, 'curve[0].ActPt': 2, 'curve[0].ReadOnly': 1,
                          'curve[0].Tms1': 0.16, 'curve[0].Tms2': 2.0 + model / 100,
                          f'curve[0].{value}1': 45.0, f'curve[0].{value}2': 48.0})


def take_legacy(image: SunSpecImage, changes: dict[str, float]) -> None:
    """What such a device does with a written curve: y beyond 100 % becomes 100 %, without a word."""
    for model, (_, y, *_) in LEGACY_CURVES.items():
        for n in range(LEGACY[model]):
            for k in range(ROOM):
                name = f'curve[{n}].{y}{k + 1}'
                if f'{model}.{name}' in changes:
                    image.set(model, {name: max(-100.0, min(100.0, image.value(model, name)))})


def fill_grid(image: SunSpecImage) -> None:
    """Usual settings of all grid functions."""
    image.scale(703, V_SF=-1, Hz_SF=-2)
    image.set(703, {'ES': 1, 'ESVHi': 105, 'ESVLo': 91.7, 'ESHzHi': 50.1, 'ESHzLo': 49.5, 'ESDlyTms': 300,
                    'ESRndTms': 0, 'ESRmpTms': 300, 'ESDlyRemTms': 0})
    for model in CURVES:
        fill_curves(image, model)
    for model, (must, cease) in TRIPS.items():
        value = 'V' if model < 709 else 'Hz'
        image.scale(model, **{f'{value}_SF': -1 if model < 709 else -3, 'Tms_SF': -2})
        image.set(model, {'Ena': 1, 'AdptCrvReq': 0, 'AdptCrvRslt': COMPLETED, 'NPt': 3, 'NCrvSet': 1,
                          'Crv[0].ReadOnly': 1})
        for kind, points in (('MustTrip', must), ('MayTrip', ()), ('MomCess', cease)):
            image.set(model, {f'Crv[0].{kind}.ActPt': len(points)})
            for k, (at, seconds) in enumerate(points):
                image.set(model, {f'Crv[0].{kind}.Pt[{k}].{value}': at, f'Crv[0].{kind}.Pt[{k}].Tms': seconds})
    image.scale(711, Db_SF=-3, K_SF=-3, RspTms_SF=0)
    image.set(711, {'Ena': 0, 'AdptCtlReq': 0, 'AdptCtlRslt': COMPLETED, 'NCtl': 2})
    for n in range(2):
        image.set(711, {f'Ctl[{n}].{name}': v for name, v in DROOP.items()} | {f'Ctl[{n}].ReadOnly': int(n == 0)})


def adopt_droop(image: SunSpecImage) -> None:
    """The requested control becomes the first one, if its slopes are above 0."""
    wanted = image.raw(711, 'AdptCtlReq') - 1
    fine = wanted == 1 and all(image.value(711, f'Ctl[1].{k}') > 0 for k in ('KOf', 'KUf'))
    image.set(711, {'AdptCtlRslt': COMPLETED if fine else FAILED})
    if fine:
        image.set(711, {f'Ctl[0].{name}': image.value(711, f'Ctl[1].{name}') for name in DROOP})


def fill_curves(image: SunSpecImage, model: int) -> None:
    """Every curve flat, none enabled."""
    x, y, x_sf, y_sf = CURVES[model]
    image.scale(model, **{x_sf: -2, y_sf: -1})
    image.set(model, {'Ena': 0, 'AdptCrvReq': 0, 'AdptCrvRslt': COMPLETED, 'NPt': 4, 'NCrv': 3})
    for n in range(3):
        image.set(model, {f'Crv[{n}].ActPt': 2, f'Crv[{n}].DeptRef': 1, f'Crv[{n}].ReadOnly': int(n == 0)})
        for k in range(4):
            image.set(model, {f'Crv[{n}].Pt[{k}].{x}': 90 + 5.0 * k, f'Crv[{n}].Pt[{k}].{y}': 0})


def adopt(image: SunSpecImage, model: int) -> None:
    """The requested curve becomes the first one, if its x rise and its y are at most 100 %."""
    x, y, *_ = CURVES[model]
    wanted = image.raw(model, 'AdptCrvReq') - 1
    if not 0 < wanted < 3:
        image.set(model, {'AdptCrvRslt': FAILED})
        return
    points = int(image.value(model, f'Crv[{wanted}].ActPt'))
    xs = [image.value(model, f'Crv[{wanted}].Pt[{k}].{x}') for k in range(min(points, 4))]
    ys = [image.value(model, f'Crv[{wanted}].Pt[{k}].{y}') for k in range(min(points, 4))]
    fine = points <= 4 and not any(map(isnan, (*xs, *ys))) and xs == sorted(xs) and all(abs(v) <= 100 for v in ys)
    image.set(model, {'AdptCrvRslt': COMPLETED if fine else FAILED})
    if fine:
        image.set(model, {'Crv[0].ActPt': points})
        for k, (a, b) in enumerate(zip(xs, ys, strict=True)):
            image.set(model, {f'Crv[0].Pt[{k}].{x}': a, f'Crv[0].Pt[{k}].{y}': b})
