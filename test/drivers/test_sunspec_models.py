"""All points of all SunSpec models: place, type, scale, unit and symbols as pysunspec2 and the documents have them."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Iterator
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from sunspec2.modbus.client import SunSpecModbusClientModel

from bess_drivers.sunspec import grid_functions
from bess_drivers.sunspec.codec import decode
from bess_drivers.sunspec.curves import LAYOUTS, REVERSION
from bess_drivers.sunspec.definitions import MODEL_FILES, ModelDef, PointDef, layout_of, model_definition
from bess_drivers.sunspec.layouts import other_layout

MODELS = sorted(int(p.stem.removeprefix('model_')) for p in MODEL_FILES.glob('model_*.json'))
#: those that the drivers read or write
OURS = (1, *range(101, 104), *range(111, 114), 120, 121, 123, 124, *range(126, 145), *range(201, 205), *range(211, 215),
        *range(701, 716), 802, 803, 804, 805, 807)
ROOM = Path(grid_functions.__file__).parent
ELEMENTS = 2
#: of the points that the drivers take as numbers; ramps are % of the maximum per second in the site file, too
UNITS = [*'V A W var Var VA Hz Wh WH Ah C Pct % %WHRtg Secs %Max/Sec'.split(), '% WMax', '% WMax/sec',
         '% PM/Hz', '%ARtg/%dV', '% VRef']


def library(model: int, data: bytes = b'') -> Any:
    """The model as the client of pysunspec2 lays it out: a repeating group has two elements."""
    definition = model_definition(model)
    assert definition is not None
    size = definition.size + ELEMENTS * definition.repeat_size if definition.flat else 0
    data = data or bytes(2 * (size or 4000))
    found = SunSpecModbusClientModel(model_id=model, model_addr=0, model_len=max(0, size - 2), data=filled(model, data))
    assert not found.error_info, found.error_info
    return found


def count_points(definition: ModelDef) -> Iterator[int]:
    """Offsets of the points that say how many elements there are."""
    for name in {'NPt', 'NCrv', 'NCrvSet', 'NCtl', definition.repeat_count}:
        if name in definition.by_name:
            yield definition.by_name[name].offset


def filled(model: int, data: bytes) -> bytes:
    """With usable numbers of elements and scale factors."""
    definition, out = model_definition(model), bytearray(data)
    assert definition is not None
    places = [(o, ELEMENTS) for o in count_points(definition)]
    for n in range(ELEMENTS if definition.repeat_size else 0):
        places += [(definition.size + n * definition.repeat_size + p.offset, -1 - n) for p in definition.repeat
                   if p.kind == 'sf']
    places += [(p.offset, -2) for p in definition.points if p.kind == 'sf']
    for offset, value in places:
        out[2 * offset:2 * offset + 2] = struct.pack('>h', value)
    return bytes(out)


def same(ours: PointDef, theirs: Any, base: int) -> None:
    pdef = theirs.pdef
    assert (ours.offset, ours.size, ours.type) == (theirs.offset - base, theirs.len, pdef['type'])
    assert ours.sf == (pdef.get('sf') if theirs.sf else theirs.sf_value)
    assert ours.writable == (pdef.get('access') == 'RW')
    assert ours.symbols == {int(s['value']): s['name'] for s in pdef.get('symbols', ())}


def single(group: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Points of a group and of its groups that do not repeat."""
    for name, point in group.points.items():
        yield prefix + name, point
    for name, sub in group.groups.items():
        if not isinstance(sub, list):
            yield from single(sub, f'{prefix}{name}.')


@pytest.mark.parametrize('model', MODELS)
def test_every_point_of_every_model_is_where_the_library_has_it(model: int) -> None:
    definition, found = model_definition(model), library(model)
    assert definition is not None and definition.id == model
    theirs = dict(single(found))
    assert set(definition.by_name) == set(theirs)
    for name, point in theirs.items():
        same(definition.by_name[name], point, 0)
    repeating = [g for g in found.groups.values() if isinstance(g, list)]
    if not definition.repeat:
        assert not repeating or not definition.flat
        return
    (group,) = repeating
    for n, element in enumerate(group):
        assert element.offset == definition.size + n * definition.repeat_size
        elements = dict(single(element))
        assert [p.name for p in definition.repeat] == list(elements)
        for point in definition.repeat:
            same(point, elements[point.name], element.offset)


def test_all_models_of_the_issue_are_there() -> None:
    assert set(OURS) <= set(MODELS)
    for model in OURS:
        definition = model_definition(model)
        assert definition is not None
        # those with groups in groups are read by number: below
        assert definition.flat or model in (*LAYOUTS, 707, 708, 709, 710), model


@pytest.mark.parametrize('model', [m for m in OURS if m not in (*LAYOUTS, 707, 708, 709, 710)])
@pytest.mark.parametrize('seed', range(3))
def test_both_decode_the_same_numbers(model: int, seed: int) -> None:
    definition = model_definition(model)
    assert definition is not None
    size = definition.size + ELEMENTS * definition.repeat_size
    noise = random.Random(1000 * model + seed).randbytes(2 * size)
    if seed == 2:  # nothing is implemented
        noise = struct.pack('>H', 0x8000) * size
    data = filled(model, noise)
    data = struct.pack('>HH', model, size - 2) + data[4:]
    found = SunSpecModbusClientModel(model_id=model, model_addr=0, model_len=size - 2, data=data)
    ours = decode(definition, struct.unpack(f'>{size}H', data), size - 2)
    pairs = [(n, p, ours.values) for n, p in single(found)]
    if definition.repeat:
        (group,) = [g for g in found.groups.values() if isinstance(g, list)]
        assert len(group) == len(ours.groups) == ELEMENTS
        pairs += [(n, p, values) for element, values in zip(group, ours.groups, strict=True)
                  for n, p in single(element)]
    local = {p.name for p in definition.repeat if p.kind == 'sf'}  # `filled` makes them usable
    compared = 0
    for name, point, values in pairs:
        kind = point.pdef['type']
        if kind in ('sunssf', 'pad', 'string', 'eui48', 'ipaddr', 'ipv6addr'):
            continue  # texts: ours are tolerant on purpose
        compared += 1
        wanted = point.cvalue
        if point.sf_required and point.sf and point.sf not in {*ours.sf, *local}:
            wanted = None
        got = values[name]
        if wanted is None or (isinstance(wanted, float) and isnan(wanted)):
            assert got is None or isnan(float(got)), name  # type: ignore[arg-type]
        elif kind.startswith('float'):
            assert got == pytest.approx(wanted, rel=1e-6) or abs(wanted) > 1e300, name
        else:
            assert got == pytest.approx(wanted, rel=1e-9), name
    assert compared


def test_curves_and_trips_are_where_the_library_has_them() -> None:
    """The offsets that are numbers in the code."""
    for model, layout in LAYOUTS.items():
        found = library(model)
        points, curves = found.points, found.groups['Crv']
        x, y = ('W', 'Var') if model == 712 else ('V', 'Var' if model == 705 else 'W')
        assert [points[n].offset for n in ('Ena', 'AdptCrvReq', 'AdptCrvRslt', 'NPt', 'NCrv')] == [2, 3, 4, 5, 6]
        assert (points['RvrtTms'].offset, points['RvrtTms'].len) == (REVERSION, 2)
        assert points[f'{x}_SF'].offset == layout.x_sf and points['DeptRef_SF'].offset == layout.y_sf
        for n, curve in enumerate(curves):
            start = layout.head + n * (layout.block + 2 * ELEMENTS)
            assert (curve.offset, curve.points['ActPt'].offset, curve.points['DeptRef'].offset) == (
                start, start, start + 1)
            assert curve.points['ReadOnly'].offset == start + layout.read_only
            for k, point in enumerate(curve.groups['Pt']):
                assert point.points[x].offset == start + layout.block + 2 * k
                assert point.points[y].offset == start + layout.block + 2 * k + 1
                assert (point.points[x].pdef['type'] == 'int16') == layout.x_signed
                assert point.points[y].pdef['type'] == 'int16'
    for model in (*grid_functions.VOLTAGE_TRIPS, *grid_functions.FREQUENCY_TRIPS):
        found = library(model)
        name, width = ('V', 3) if model in grid_functions.VOLTAGE_TRIPS else ('Hz', 4)
        assert [found.points[n].offset for n in ('Ena', 'NPt', 'NCrvSet', f'{name}_SF', 'Tms_SF')] == [2, 5, 6, 7, 8]
        for n, trip in enumerate(found.groups['Crv']):
            start = grid_functions.TRIP_HEAD + n * (4 + 3 * width * ELEMENTS)
            assert trip.points['ReadOnly'].offset == start
            for kind, group in enumerate(('MustTrip', 'MayTrip', 'MomCess')):
                at = start + 1 + kind * (1 + width * ELEMENTS)
                assert trip.groups[group].points['ActPt'].offset == at
                for k, point in enumerate(trip.groups[group].groups['Pt']):
                    value, seconds = point.points[name], point.points['Tms']
                    assert (value.offset, value.len) == (at + 1 + width * k, width - 2)
                    assert (seconds.offset, seconds.len) == (at + 1 + width * k + width - 2, 2)


def test_points_that_the_drivers_use_exist_and_have_the_units_of_the_code() -> None:
    """Every number that a driver takes is in V, A, W, var, VA, Hz, Wh, Ah, degC, %, s: nothing in kilo or milli."""
    used = {name for path in ROOM.glob('*.py')
            for name in re.findall(r"number\(\s*'([A-Za-z0-9_]+)'", path.read_text())}
    assert len(used) > 50
    units: dict[str, set[str]] = {}
    for model in OURS:
        points = dict(single(library(model)))
        for group in library(model).groups.values():
            if isinstance(group, list):
                points |= dict(single(group[0]))
        for name in used & set(points):
            units.setdefault(name, set()).add(points[name].pdef.get('units', ''))
    others = (801, 802, 803, *range(64201, 64205), 64040, 64041, 64800)
    drafts = {p['name'] for m in others for g in (other_layout(m),) if g
              for p in (*g['points'], *(q for sub in g['groups'] for q in sub['points']))}
    assert used - set(units) <= drafts
    allowed = {'', *UNITS}
    assert {(n, u) for n, us in units.items() for u in us if u not in allowed} == set()


#: offset, type, scale factor, writable of the layouts that pysunspec2 does not have (drafts: register order of the
#: public firmware; vendors' and 64800: OpenEMS), `name@offset`
ELSEWHERE = {
    (64800, 14): 'LocRemCtl@2 PCSHb@3 ControllerHb@4! Reserved@5 PCSSetOperation@6! MaxBatACha@7! MaxBatADischa@8! '
                 'MaxA@9 MaxACur@10 MaxBatA_SF@11 MaxA_SF@12 MaxACur_SF@13 Pad1@14 Pad2@15',
    (64201, 52): 'VersionMajor@2 VersionMinor@3 RequestedState@4! CurrentState@5 ControlMode@6! R7@7 Watchdog@8! '
                 'WSetPct@9! VarSetPct@10! R11@11 R12@12 R13@13 R14@14 R15@15 StVnd@16 StPu@17 StPcu@18 ErrPcu@19 '
                 'WParamRmpTms@20! WParamRmpDecTmm@21! WParamRmpIncTmm@22! R23@23 R24@24 WParamEna@25! '
                 'VarParamRmpTms@26! VarParamRmpDecTmm@27! VarParamRmpIncTmm@28! R29@29 R30@30 VarParamEna@31! '
                 'PhVphA@32 PhVphB@33 PhVphC@34 W@35 VAr@36 Hz@37 R38@38 R39@39 R40@40 R41@41 R42@42 R43@43 R44@44 '
                 'R45@45 WSetPct_SF@46 VarSetPct_SF@47 RmpTms_SF@48 RmpIncDec_SF@49 V_SF@50 W_SF@51 VAr_SF@52 Hz_SF@53',
    (64202, 14): 'VersionMajor@2 VersionMinor@3 R4@4 R5@5 V_SF@6 A_SF@7 DisMinV@8! DisMaxA@9! DisCutoffA@10! '
                 'ChaMaxV@11! ChaMaxA@12! ChaCutoffA@13! R14@14 EnLimit@15!',
    (64203, 26): 'VersionMajor@2 VersionMinor@3 EmsErrCode@4! SoC_SF@5 SoH_SF@6 Temp_SF@7 BatId@8! BatSoC@9! '
                 'BatSoH@10! BatTemp@11! BatSWVer@12! BatSWSum@20!',
    (64204, 8): 'VersionMajor@2 VersionMinor@3 VOffPct@4! VArOffPct@5! RvrtTms@6! OffsetEna@7! VOffPct_SF@8 '
                'VArOffPct_SF@9',
    (64040, 3): 'ParamId@2! ParamIndex@4!',
    (64041, 10): 'U32@2! S32@4! F32@6! U16@8! S16@9! U8@10! S8@11!',
    (801, 22): 'DERTyp@2 WHRtg@3 WMaxChaRte@4 WMaxDisChaRte@5 DisChaRte@6 SoCNpMaxPct@7 SoCNpMinPct@8 MaxRsvPct@9 '
               'MinRsvPct@10 SoC@11 ChaSt@12 LocRemCtl@13 Evt@14 DERHb@16 ControllerHb@17! DERAlarmReset@18! '
               'WHRtg_SF@19 WMaxChaDisCha_SF@20 DisChaRte_SF@21 SoC_SF@22 Pad@23',
    (802, 20): 'BatTyp@2 BatSt@3 CycleCt@4 SoH@6 Evt1@7 Evt2@9 Vol@11 MaxBatACha@12 MaxBatADischa@13 BatReqPCSSt@14 '
               'BatReqW@15 BSetOperation@16! BSetPCSState@17! SoH_SF@18 Vol_SF@19 MaxBatA_SF@20 BatReqW_SF@21',
    (803, 16): 'BConStrCt@2 BMaxCellVol@3 BMaxCellVolLoc@4 BMinCellVol@5 BMinCellVolLoc@6 BMaxModTmp@7 '
               'BMaxModTmpLoc@8 BMinModTmp@9 BMinModTmpLoc@10 BTotDCCur@11 BMaxStrCur@12 BMinStrCur@13 BCellVol_SF@14 '
               'BModTmp_SF@15 BCurrent_SF@16 StrSoH_SF@17',
}


@pytest.mark.parametrize(('which', 'places'), ELSEWHERE.items(), ids=lambda x: str(x)[:12])
def test_layouts_that_the_library_does_not_have(which: tuple[int, int], places: str) -> None:
    definition = layout_of(*which)
    assert definition is not None and definition.length_problem(which[1]) == ''
    found = [f'{p.name}@{p.offset}{"!" * p.writable}' for p in definition.points if p.name not in ('ID', 'L')]
    assert found == places.split()
    assert definition.size == which[1] + 2
