"""Curves of the simulated DER: 705, 706 and 712 with three curves of four points; the first shows what acts."""

from __future__ import annotations

from math import isnan

from bess_sim.devices.sunspec_image import SunSpecImage

#: model -> names of x and y of a point, of their scale factors
CURVES = {705: ('V', 'Var', 'V_SF', 'DeptRef_SF'), 706: ('V', 'W', 'V_SF', 'DeptRef_SF'),
          712: ('W', 'Var', 'W_SF', 'DeptRef_SF')}
COMPLETED, FAILED = 1, 2


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
