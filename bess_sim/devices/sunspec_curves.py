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
