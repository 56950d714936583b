"""Model layouts that `pysunspec2` does not have: the MESA drafts of 801 to 803, MESA-PCS 64800, vendors' models.

Sources: public firmware of a battery that fills the draft storage models (field order, types, event
bits); OpenEMS for 64800, 64040 and 64041 (REFUstore 88K) and 64201 to 64204 (KACO blueplanet gridsave).
`R<offset>` = not known. Where OpenEMS contradicts the length of a model the length holds: the index of 64040 has
one register (two would reach into 64041), the texts of 64203 have eight (four would leave eight over).
Written as `Name[!]:type[:scale factor]`, `!` = writable, from the register behind L; a text as `string<registers>`.
"""

from __future__ import annotations

from typing import Any

_EVENTS = [
    'COMMUNICATION_ERROR', 'OVER_TEMP_ALARM', 'UNDER_TEMP_ALARM', 'OVER_TEMP_WARNING', 'UNDER_TEMP_WARNING',
    'OVER_CHARGE_CURRENT_ALARM', 'OVER_DISCHARGE_CURRENT_ALARM', 'OVER_CHARGE_CURRENT_WARNING',
    'OVER_DISCHARGE_CURRENT_WARNING', 'VOLTAGE_IMBALANCE_WARNING', 'CURRENT_IMBALANCE_WARNING', 'OVER_VOLT_ALARM',
    'UNDER_VOLT_ALARM', 'OVER_VOLT_WARNING', 'UNDER_VOLT_WARNING', 'CONTACTOR_ERROR', 'FAN_ERROR', 'CONTACTOR_STATUS',
    'GROUND_FAULT', 'OPEN_DOOR_ERROR', 'OTHER_ALARM', 'OTHER_WARNING',
]
_STRING_EVENTS = [*_EVENTS[:9], *_EVENTS[11:], 'STRING_ENABLED']
_SOC_EVENTS = ['UNDER_SOC_MIN_WARNING', 'UNDER_SOC_MIN_ALARM', 'OVER_SOC_MAX_WARNING', 'OVER_SOC_MAX_ALARM']

#: model -> (name, fixed part, repeating part, name of each bit field's bits)
_TABLES: dict[int, tuple[str, str, str, dict[str, list[str]]]] = {
    801: ('storage_draft',
          'DERTyp:enum16 WHRtg:uint16:WHRtg_SF WMaxChaRte:uint16:WMaxChaDisCha_SF '
          'WMaxDisChaRte:uint16:WMaxChaDisCha_SF DisChaRte:uint16:DisChaRte_SF SoCNpMaxPct:uint16:SoC_SF '
          'SoCNpMinPct:uint16:SoC_SF MaxRsvPct:uint16:SoC_SF MinRsvPct:uint16:SoC_SF SoC:uint16:SoC_SF ChaSt:enum16 '
          'LocRemCtl:enum16 Evt:bitfield32 DERHb:uint16 ControllerHb!:uint16 DERAlarmReset!:uint16 WHRtg_SF:sunssf '
          'WMaxChaDisCha_SF:sunssf DisChaRte_SF:sunssf SoC_SF:sunssf Pad:pad', '', {'Evt': _SOC_EVENTS}),
    802: ('battery_draft',
          'BatTyp:enum16 BatSt:enum16 CycleCt:uint32 SoH:uint16:SoH_SF Evt1:bitfield32 Evt2:bitfield32 '
          'Vol:uint16:Vol_SF MaxBatACha:uint16:MaxBatA_SF MaxBatADischa:uint16:MaxBatA_SF BatReqPCSSt:enum16 '
          'BatReqW:int16:BatReqW_SF BSetOperation!:enum16 BSetPCSState!:enum16 SoH_SF:sunssf Vol_SF:sunssf '
          'MaxBatA_SF:sunssf BatReqW_SF:sunssf', '', {'Evt1': _EVENTS}),
    803: ('lithium_ion_bank_draft',
          'BConStrCt:uint16 BMaxCellVol:uint16:BCellVol_SF BMaxCellVolLoc:uint16 BMinCellVol:uint16:BCellVol_SF '
          'BMinCellVolLoc:uint16 BMaxModTmp:int16:BModTmp_SF BMaxModTmpLoc:uint16 BMinModTmp:int16:BModTmp_SF '
          'BMinModTmpLoc:uint16 BTotDCCur:int16:BCurrent_SF BMaxStrCur:int16:BCurrent_SF BMinStrCur:int16:BCurrent_SF '
          'BCellVol_SF:sunssf BModTmp_SF:sunssf BCurrent_SF:sunssf StrSoH_SF:sunssf',
          'StrModCt:uint16 StrSoC:uint16 StrSoH:uint16:StrSoH_SF StrCur:int16:BCurrent_SF '
          'StrMaxCellVol:uint16:BCellVol_SF StrMinCellVol:uint16:BCellVol_SF StrCellVolLoc:uint16 '
          'StrMaxModTmp:int16:BModTmp_SF StrMinModTmp:int16:BModTmp_SF StrModTmpLoc:uint16 StrEvt1:bitfield32 '
          'StrEvt2:bitfield32 StrConFail:enum16 StrSetEna!:enum16', {'StrEvt1': _STRING_EVENTS}),
    64800: ('mesa_pcs',
            'LocRemCtl:enum16 PCSHb:uint16 ControllerHb!:uint16 Reserved:uint16 PCSSetOperation!:enum16 '
            'MaxBatACha!:uint16:MaxBatA_SF MaxBatADischa!:uint16:MaxBatA_SF MaxA:uint16:MaxA_SF '
            'MaxACur:uint16:MaxACur_SF MaxBatA_SF:sunssf MaxA_SF:sunssf MaxACur_SF:sunssf Pad1:pad Pad2:pad', '', {}),
    64201: ('kaco_gridsave',
            'VersionMajor:uint16 VersionMinor:uint16 RequestedState!:enum16 CurrentState:enum16 ControlMode!:enum16 '
            'R7:uint16 Watchdog!:uint16 WSetPct!:int16:WSetPct_SF VarSetPct!:int16:VarSetPct_SF R11:uint16 R12:uint16 '
            'R13:uint16 R14:uint16 R15:uint16 StVnd:enum16 StPu:enum16 StPcu:enum16 ErrPcu:enum16 '
            'WParamRmpTms!:uint16:RmpTms_SF WParamRmpDecTmm!:uint16:RmpIncDec_SF WParamRmpIncTmm!:uint16:RmpIncDec_SF '
            'R23:uint16 R24:uint16 WParamEna!:enum16 VarParamRmpTms!:uint16:RmpTms_SF '
            'VarParamRmpDecTmm!:uint16:RmpIncDec_SF VarParamRmpIncTmm!:uint16:RmpIncDec_SF R29:uint16 R30:uint16 '
            'VarParamEna!:enum16 PhVphA:uint16:V_SF PhVphB:uint16:V_SF PhVphC:uint16:V_SF W:int16:W_SF '
            'VAr:int16:VAr_SF Hz:uint16:Hz_SF '
            'R38:uint16 R39:uint16 R40:uint16 R41:uint16 R42:uint16 R43:uint16 R44:uint16 R45:uint16 '
            'WSetPct_SF:sunssf VarSetPct_SF:sunssf RmpTms_SF:sunssf RmpIncDec_SF:sunssf V_SF:sunssf W_SF:sunssf '
            'VAr_SF:sunssf Hz_SF:sunssf', '', {}),
    64202: ('kaco_battery_limits',
            'VersionMajor:uint16 VersionMinor:uint16 R4:uint16 R5:uint16 V_SF:sunssf A_SF:sunssf '
            'DisMinV!:uint16:V_SF DisMaxA!:uint16:A_SF DisCutoffA!:uint16:A_SF ChaMaxV!:uint16:V_SF '
            'ChaMaxA!:uint16:A_SF ChaCutoffA!:uint16:A_SF R14:uint16 EnLimit!:enum16', '', {}),
    64203: ('kaco_battery_information',
            'VersionMajor:uint16 VersionMinor:uint16 EmsErrCode!:enum16 SoC_SF:sunssf SoH_SF:sunssf Temp_SF:sunssf '
            'BatId!:uint16 BatSoC!:uint16:SoC_SF BatSoH!:uint16:SoH_SF BatTemp!:int16:Temp_SF BatSWVer!:string8 '
            'BatSWSum!:string8', '', {}),
    64204: ('kaco_volt_var_offset',
            'VersionMajor:uint16 VersionMinor:uint16 VOffPct!:int16:VOffPct_SF VArOffPct!:int16:VArOffPct_SF '
            'RvrtTms!:uint16 OffsetEna!:enum16 VOffPct_SF:sunssf VArOffPct_SF:sunssf', '', {}),
    64040: ('refu_parameter', 'ParamId!:uint32 ParamIndex!:uint16', '', {}),
    64041: ('refu_parameter_value',
            'U32!:uint32 S32!:int32 F32!:float32 U16!:uint16 S16!:int16 U8!:uint16 S8!:int16', '', {}),
}


def _points(text: str, bits: dict[str, list[str]]) -> list[dict[str, Any]]:
    points = []
    for word in text.split():
        name, type_, *sf = word.split(':')
        plain = name.rstrip('!')
        size = 2 if type_.endswith('32') else 1
        if type_.startswith('string'):
            type_, size = 'string', int(type_.removeprefix('string'))
        points.append({
            'name': plain, 'type': type_, 'size': size,
            **({'sf': sf[0]} if sf else {}), **({'access': 'RW'} if name.endswith('!') else {}),
            'symbols': [{'name': n, 'value': bit} for bit, n in enumerate(bits.get(plain, ()))]})
    return points


def other_layout(model_id: int) -> dict[str, Any] | None:
    """Definition of the other layout of a model, as the JSON files write it; None where there is none."""
    if model_id not in _TABLES:
        return None
    name, fixed, repeat, bits = _TABLES[model_id]
    head = [{'name': 'ID', 'type': 'uint16', 'size': 1}, {'name': 'L', 'type': 'uint16', 'size': 1}]
    groups = [{'name': 'string', 'count': 0, 'points': _points(repeat, bits)}] if repeat else []
    return {'name': name, 'points': [*head, *_points(fixed, bits)], 'groups': groups}
