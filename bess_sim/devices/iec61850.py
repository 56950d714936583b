"""Simulated IEC 61850 server with one battery (DBAT, SBAT, DSTO, CSWI; or ZBAT and ZBTC of edition 1).

The protocol is that of open61850 (Apache-2.0), an implementation independent of the one that the driver's bridge uses.
"""

from __future__ import annotations

import threading
from io import StringIO
from math import isfinite
from typing import Any

from bess_sim.control_server import Request
from bess_sim.device_faults import DeviceFaults
from bess_sim.plant_api import PackSample, PlantApi

IED, DEVICE = 'BESS1', 'BAT'
DOMAIN = IED + DEVICE
CELL_HIGH, CELL_LOW = 3.7, 2.6  # V
TICK_S = 0.05
#: node class -> data object -> type
MODELS: dict[str, dict[str, dict[str, str]]] = {
    'dbat': {
        'DBAT': {**dict.fromkeys(('ExtVol', 'Amp', 'Watt', 'SocWh', 'IntnTmp', 'ExtTmp'), 'MV'),
                 **dict.fromkeys(('EffWh', 'ChaAmpLim', 'DschAmpLim'), 'ASG'),
                 **dict.fromkeys(('ExtVolHiAlm', 'ExtVolLoAlm', 'ExtTmpHiAlm', 'ExtTmpLoAlm', 'UnbTmpAlm', 'UnbVolWrn',
                                  'UnbAmpWrn', 'ChaAmpHiAlm', 'DschAmpHiAlm', 'SocHiAlm', 'SocLoAlm', 'DCSwCls'),
                                 'SPS')},
        'SBAT': dict.fromkeys(('CelVolLo', 'CelVolHi', 'CelTmpMin', 'CelTmpMax'), 'MV'),
        'DSTO': {'SocPct': 'MV'}, 'CSWI': {'Pos': 'DPC'}},
    'zbat': {'ZBAT': {**dict.fromkeys(('Vol', 'Amp', 'InBatTmp'), 'MV'), **dict.fromkeys(('AhrRtg', 'MaxBatA'), 'ASG')},
             'ZBTC': {'ReChaRte': 'ASG'}},
}
_TYPES = '''
<DOType id="MV" cdc="MV"><DA name="mag" fc="MX" bType="Struct" type="AnalogueValue"/>
 <DA name="q" fc="MX" bType="Quality"/>
 <DA name="t" fc="MX" bType="Timestamp"/><DA name="units" fc="CF" bType="Struct" type="Unit"/></DOType>
<DOType id="ASG" cdc="ASG"><DA name="setMag" fc="SP" bType="Struct" type="AnalogueValue"/></DOType>
<DOType id="SPS" cdc="SPS"><DA name="stVal" fc="ST" bType="BOOLEAN"/><DA name="q" fc="ST" bType="Quality"/>
 <DA name="t" fc="ST" bType="Timestamp"/></DOType>
<DOType id="INS" cdc="INS"><DA name="stVal" fc="ST" bType="INT32"/><DA name="q" fc="ST" bType="Quality"/>
 <DA name="t" fc="ST" bType="Timestamp"/></DOType>
<DOType id="DPC" cdc="DPC"><DA name="stVal" fc="ST" bType="Dbpos"/><DA name="q" fc="ST" bType="Quality"/>
 <DA name="t" fc="ST" bType="Timestamp"/><DA name="ctlModel" fc="CF" bType="Enum" type="CtlModels">
 <Val>{model}</Val></DA>
 {select}<DA name="Oper" fc="CO" bType="Struct" type="Oper"/></DOType>
<DAType id="AnalogueValue"><BDA name="f" bType="FLOAT32"/></DAType>
<DAType id="Unit"><BDA name="SIUnit" bType="INT8"/><BDA name="multiplier" bType="INT8"/></DAType>
<DAType id="Originator"><BDA name="orCat" bType="INT8"/><BDA name="orIdent" bType="Octet64"/></DAType>
<DAType id="Oper"><BDA name="ctlVal" bType="BOOLEAN"/><BDA name="origin" bType="Struct" type="Originator"/>
 <BDA name="ctlNum" bType="INT8U"/><BDA name="T" bType="Timestamp"/><BDA name="Test" bType="BOOLEAN"/>
 <BDA name="Check" bType="Check"/></DAType>
<EnumType id="CtlModels"><EnumVal ord="0">status-only</EnumVal><EnumVal ord="1">direct-with-normal-security</EnumVal>
 <EnumVal ord="2">sbo-with-normal-security</EnumVal><EnumVal ord="3">direct-with-enhanced-security</EnumVal>
 <EnumVal ord="4">sbo-with-enhanced-security</EnumVal></EnumType>'''


#: What an object has for a select, by control model.
SELECT = {'sbo-with-normal-security': '<DA name="SBO" fc="CO" bType="VisString129"/>',
          'sbo-with-enhanced-security': '<DA name="SBOw" fc="CO" bType="Struct" type="Oper"/>'}


def scl(nodes: dict[str, dict[str, str]], control_model: str) -> str:
    """The server as a document of the substation configuration language."""
    types = '<LNodeType id="LLN0" lnClass="LLN0"><DO name="Health" type="INS"/></LNodeType>' + ''.join(
        f'<LNodeType id="{kind}" lnClass="{kind}">'
        + ''.join(f'<DO name="{do}" type="{cdc}"/>' for do, cdc in dos.items()) + '</LNodeType>'
        for kind, dos in nodes.items())
    instances = ''.join(f'<LN lnClass="{kind}" inst="1" lnType="{kind}"/>' for kind in nodes)
    common = _TYPES.format(model=control_model, select=SELECT.get(control_model, ''))
    return (f'<?xml version="1.0"?><SCL xmlns="http://www.iec.ch/61850/2003/SCL" version="2007" revision="B">'
            f'<Header id="{IED}"/><IED name="{IED}"><AccessPoint name="P1"><Server><Authentication/>'
            f'<LDevice inst="{DEVICE}"><LN0 lnClass="LLN0" inst="" lnType="LLN0"/>{instances}</LDevice>'
            f'</Server></AccessPoint></IED><DataTypeTemplates>{types}{common}'
            f'</DataTypeTemplates></SCL>')


class Iec61850Simulator:
    """One battery behind a server (`RunningDevice`). kilo: powers are shown in kW."""

    def __init__(self, plant: PlantApi, unit: str, faults: DeviceFaults, host: str, port: int, *, battery: str = 'dbat',
                 control_model: str = 'sbo-with-normal-security', kilo: bool = False) -> None:
        from open61850.server import IedModel  # an optional library

        if battery not in MODELS:
            raise ValueError(f'iec61850: battery must be one of {", ".join(MODELS)}, not {battery!r}')
        document: Any = StringIO(scl(MODELS[battery], control_model))
        self._plant, self._unit, self._faults = plant, unit, faults
        self._host, self._port, self._kilo, self._nodes = host, port, kilo, MODELS[battery]
        self._model: Any = IedModel.from_scl(document)
        self.invalid: set[str] = set()  # data objects whose quality says so
        self.forced: dict[str, bool] = {}  # status object -> value instead of that of the plant
        self._frozen: PackSample | None = None
        self._server: Any = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if kilo:
            self._set('DBAT1.Watt.units.multiplier[CF]', 3)

    def start(self) -> str:
        """See `RunningDevice`."""
        self._stop.clear()
        self._listen()
        self._thread = threading.Thread(target=self._watch, name='iec61850', daemon=True)
        self._thread.start()
        return f'iec61850://{self._host}:{self._port}'

    def stop(self) -> None:
        """See `RunningDevice`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(3.0)
        if self._server is not None:
            self._server.stop()

    def check(self) -> None:
        """See `RunningDevice`. A connection that fails ends alone."""

    def command(self, request: Request) -> Request:
        """See `RunningDevice`."""
        raise ValueError(f'unknown command {request["cmd"]!r}')

    def _listen(self) -> None:
        from open61850.server import MmsServer

        server: Any = MmsServer(self._model, self._host, self._port, vendor='bess', model_name='simulated battery')
        server.read_hooks.append(self._on_read)
        server.start()
        self._port = server.port
        if 'CSWI' in self._nodes:
            server.controls.set_handler(f'{DOMAIN}/CSWI1.Pos', self._on_operate)
        self._server = server

    def _watch(self) -> None:
        while not self._stop.wait(TICK_S):
            away = self._faults.on('disconnect')
            if away and self._server is not None:
                self._server.stop()
                self._server = None
            elif not away and self._server is None:
                self._listen()

    def _on_operate(self, command: Any) -> None:
        on = bool(command.ctl_val.value)
        self._plant.set_switches(self._unit, on, on)

    def _on_read(self, _: Any, __: Any) -> None:
        while self._faults.on('no_answer') and not self._stop.is_set():
            self._stop.wait(TICK_S)
        if self._faults.on('late_answer'):
            self._stop.wait(self._faults.value('late_answer', 2.0))
        self._refresh()

    def _refresh(self) -> None:
        s = self._plant.pack(self._unit)
        if self._faults.on('frozen_value'):
            s = self._frozen = self._frozen or s
        else:
            self._frozen = None
        closed = s.charge_switch and s.discharge_switch
        numbers = {
            'DBAT.ExtVol': s.voltage, 'DBAT.Amp': s.current,
            'DBAT.Watt': s.voltage * s.current / (1e3 if self._kilo else 1.0),
            'DBAT.SocWh': s.energy, 'DBAT.EffWh': s.energy_full, 'DBAT.IntnTmp': max(s.temperatures),
            'DBAT.ExtTmp': min(s.temperatures), 'DBAT.ChaAmpLim': s.max_charge_current,
            'DBAT.DschAmpLim': s.max_discharge_current, 'SBAT.CelVolLo': min(s.cells), 'SBAT.CelVolHi': max(s.cells),
            'SBAT.CelTmpMin': min(s.temperatures), 'SBAT.CelTmpMax': max(s.temperatures),
            'DSTO.SocPct': 100 * s.energy / s.energy_full, 'ZBAT.Vol': s.voltage, 'ZBAT.Amp': s.current,
            'ZBAT.InBatTmp': max(s.temperatures), 'ZBAT.AhrRtg': s.charge_full, 'ZBAT.MaxBatA': s.max_discharge_current,
            'ZBTC.ReChaRte': s.max_charge_current}
        states = {'ExtVolHiAlm': max(s.cells) > CELL_HIGH, 'ExtVolLoAlm': min(s.cells) < CELL_LOW, 'DCSwCls': closed}
        for kind, dos in self._nodes.items():
            for do, cdc in dos.items():
                at = f'{kind}1.{do}'
                if cdc in ('MV', 'ASG'):
                    form = 'mag.f[MX]' if cdc == 'MV' else 'setMag.f[SP]'
                    value = numbers[f'{kind}.{do}']
                    self._set(f'{at}.{form}', value if isfinite(value) else 0.0)
                elif cdc == 'SPS':
                    self._set(f'{at}.stVal[ST]', self.forced.get(do, states.get(do, False)))
                else:
                    self._set(f'{at}.stVal[ST]', 2 if closed else 1)
                if cdc != 'ASG':
                    # Bits 0 and 1: 00 good, 01 invalid.
                    self._set(f'{at}.q[{"MX" if cdc == "MV" else "ST"}]', self._quality(do))

    def _quality(self, do: str) -> Any:
        from open61850.data import BitStringData

        return BitStringData(bytes((0x40 if do in self.invalid else 0, 0)), 3)

    def _set(self, reference: str, value: Any) -> None:
        self._model.set(f'{DOMAIN}/{reference}', value, notify=False)
