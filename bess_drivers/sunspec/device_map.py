"""Finds the models of a SunSpec device over a register link and reads them in few requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bess_core.values import Identity
from bess_drivers.device import BadFrame, BadValue, DeviceError, Disconnected, NoAnswer, Refused
from bess_drivers.sunspec.codec import ModelValues, decode, encode
from bess_drivers.sunspec.definitions import ModelDef, layout_of

SUNS = [0x5375, 0x6E53]
BASES = (40000, 0, 50000)
END_ID = 0xFFFF
MAX_MODELS = 96  # a device with more is broken
MAX_REGISTERS = 125  # Modbus limit of one read


class RegisterLink(Protocol):
    """What the drivers need of a Modbus link (`bess_drivers.modbus.link.ModbusLink`)."""

    def open(self) -> None:
        """Connect."""

    def close(self) -> None:
        """Disconnect."""

    def read_holding(self, unit: int, address: int, count: int) -> list[int]:
        """Read holding registers."""

    def write_registers(self, unit: int, address: int, values: Sequence[int]) -> None:
        """Write holding registers in one request."""


@dataclass(frozen=True, slots=True)
class Block:
    """One model in the device: `address` of its ID register, `length` = its L."""

    id: int
    address: int
    length: int


def plan_reads(
    spans: Sequence[tuple[int, int]], max_count: int, max_gap: int = 20
) -> list[tuple[int, int]]:
    """Requests (address, count) that cover all spans, neighbours joined where one can hold them."""
    joined: list[tuple[int, int]] = []
    for address, count in sorted(spans):
        if joined:
            start, size = joined[-1]
            end = max(start + size, address + count)
            if address - (start + size) <= max_gap and end - start <= max_count:
                joined[-1] = (start, end - start)
                continue
        joined.append((address, count))
    return [
        (a, min(max_count, start + size - a))
        for start, size in joined
        for a in range(start, start + size, max_count)
    ]


class DeviceMap:
    """The models of one device. All methods raise only `DeviceError`s.

    The walk is tolerant: an odd, unknown or wrong-sized model is skipped and noted, a missing end
    marker ends the map. A model whose L does not fit its definition is never decoded.
    """

    def __init__(
        self, link: RegisterLink, unit: int, base: str = 'auto', max_registers: int = MAX_REGISTERS
    ) -> None:
        self._link = link
        self._unit = unit
        self._bases = BASES if base == 'auto' else (int(base),)
        self._max = max_registers
        self.base = -1
        self.blocks: tuple[Block, ...] = ()
        self.notes: tuple[str, ...] = ()
        self._by_id: dict[int, Block] = {}

    @property
    def known(self) -> bool:
        """Whether `scan` succeeded since the last `forget`."""
        return bool(self.blocks)

    def forget(self) -> None:
        """Drop what is known: another device may answer after a reconnect."""
        self.blocks, self.notes, self._by_id, self.base = (), (), {}, -1

    def scan(self) -> None:
        """Find the base address and walk the models. Raises `BadValue` if it is no SunSpec."""
        self.forget()
        base = self._find_base()
        blocks: list[Block] = []
        notes: list[str] = []
        address = base + 2
        while len(blocks) < MAX_MODELS:
            if address + 1 > 0xFFFF:
                notes.append('no end marker before the end of the address space')
                break
            try:
                model_id, length = self._read(address, 2)
            except Refused:
                notes.append(f'no end marker at {address}')
                break
            if model_id == END_ID:
                break
            if model_id == 0 or length == END_ID:
                notes.append(f'no model at {address} (ID={model_id}, L={length})')
                break
            blocks.append(Block(model_id, address, length))
            address += 2 + length
        else:
            notes.append(f'more than {MAX_MODELS} models: the rest is ignored')
        if not blocks:
            raise BadValue(f'SunSpec marker at {base}, but no model behind it')
        by_id: dict[int, Block] = {}
        for block in blocks:
            definition = layout_of(block.id, block.length)
            problem = definition.length_problem(block.length) if definition else ''
            if problem:
                notes.append(problem)
            if block.address + 2 + block.length > 0x10000:
                notes.append(f'model {block.id} reaches beyond the address space')
                continue
            by_id.setdefault(block.id, block)
        self.base, self.blocks, self._by_id = base, tuple(blocks), by_id
        self.notes = tuple(dict.fromkeys(notes))

    def _find_base(self) -> int:
        failure: DeviceError | None = None
        for base in self._bases:
            try:
                if self._read(base, 2) == SUNS:
                    return base
            except Disconnected:
                raise
            except (Refused, NoAnswer) as error:  # refused or silent outside its own map
                failure = error
        tried = ', '.join(map(str, self._bases))
        if isinstance(failure, NoAnswer):
            raise NoAnswer(
                f'no answer while looking for the SunSpec marker at {tried}'
            ) from failure
        raise BadValue(f'no SunSpec marker "SunS" at {tried}') from failure

    def has(self, model_id: int) -> bool:
        """Whether the device has this model in the layout of its definition."""
        block = self._by_id.get(model_id)
        definition = layout_of(model_id, block.length) if block else None
        return (
            block is not None
            and definition is not None
            and not definition.length_problem(block.length)
        )

    def first_of(self, *model_ids: int) -> int:
        """The first of these models that the device has; 0 for none."""
        return next((i for i in model_ids if self.has(i)), 0)

    def problem(self, model_id: int) -> str:
        """Why a model cannot be used; '' if it can."""
        block = self._by_id.get(model_id)
        definition = layout_of(model_id, block.length) if block else None
        if block is None or definition is None:
            present = ', '.join(str(b.id) for b in self.blocks)
            return f'no model {model_id} (models: {present})'
        return definition.length_problem(block.length)

    def _need(self, model_id: int) -> tuple[Block, ModelDef]:
        problem = self.problem(model_id)
        if problem:
            raise BadValue(problem)
        block = self._by_id[model_id]
        definition = layout_of(model_id, block.length)
        assert definition is not None  # else there was a problem
        return block, definition

    def is_draft(self, model_id: int) -> bool:
        """Whether the device has this model in the layout of a draft."""
        return self.has(model_id) and self._need(model_id)[1].name.endswith('_draft')

    def read_each(self, model_id: int) -> list[ModelValues]:
        """All models of this id (one per string or module) in the order of the map. Raises `DeviceError`.

        One whose L does not fit is left out: `notes` names it.
        """
        result = []
        for block in self.blocks:
            definition = layout_of(block.id, block.length) if block.id == model_id else None
            if definition is None or definition.length_problem(block.length):
                continue
            total = block.length + 2
            registers = [
                r for start in range(0, total, self._max)
                for r in self._read(block.address + start, min(self._max, total - start))
            ]
            if registers[:2] != [block.id, block.length]:
                raise BadFrame(f'model {model_id} is no longer at {block.address}')
            result.append(decode(definition, registers))
        return result

    def read(self, model_id: int, registers: int = 0) -> ModelValues:
        """Read and decode one model; see `read_models`."""
        return self.read_models({model_id: registers})[model_id]

    def read_models(self, wanted: dict[int, int]) -> dict[int, ModelValues]:
        """Read models (id -> registers from the start, 0 = all) in as few requests as possible.

        Raises `BadValue` for a model that is not there and `BadFrame` if the map has moved.
        """
        needed = {}
        for model_id, registers in wanted.items():
            block, definition = self._need(model_id)
            total = block.length + 2
            needed[model_id] = (block, definition, min(total, registers) if registers else total)
        spans = [(block.address, count) for block, _, count in needed.values()]
        image: dict[int, int] = {}
        for address, count in plan_reads(spans, self._max):
            image.update(enumerate(self._read(address, count), address))
        result = {}
        for model_id, (block, definition, count) in needed.items():
            registers_ = [image[a] for a in range(block.address, block.address + count)]
            if registers_[:2] != [block.id, block.length]:
                raise BadFrame(f'model {model_id} is no longer at {block.address}')
            result[model_id] = decode(definition, registers_)
        return result

    def encode(self, model_id: int, name: str, value: float, sf: Mapping[str, int]) -> list[int]:
        """Registers of one point; `sf` from a read of the same model. Raises `BadValue`."""
        _, definition = self._need(model_id)
        return encode(definition.by_name[name], value, sf)

    def write(self, model_id: int, values: Mapping[str, float], sf: Mapping[str, int]) -> None:
        """Write points in the order of their offsets, neighbours in one request.

        All are encoded before the first leaves. Raises `BadValue` or what the link raises.
        """
        block, definition = self._need(model_id)
        runs: list[tuple[int, list[int]]] = []
        for point in sorted((definition.by_name[name] for name in values), key=lambda p: p.offset):
            if not point.writable:
                raise BadValue(f'{point.name} of model {model_id} is read-only')
            registers = encode(point, values[point.name], sf)
            if runs and runs[-1][0] + len(runs[-1][1]) == point.offset:
                runs[-1][1].extend(registers)
            else:
                runs.append((point.offset, registers))
        for offset, registers in runs:
            self._link.write_registers(self._unit, block.address + offset, registers)

    def write_raw(self, model_id: int, name: str, register: int) -> None:
        """Write one 16-bit point past its type: vendors use unsigned points with a sign."""
        block, definition = self._need(model_id)
        self._link.write_registers(
            self._unit, block.address + definition.by_name[name].offset, [register & 0xFFFF]
        )

    def read_raw(self, model_id: int, offset: int, count: int) -> list[int]:
        """Registers of a model from `offset` (ID at 0). Raises `BadValue` beyond its end."""
        block, _ = self._need(model_id)
        self._inside(block, offset, count)
        return [r for at in range(offset, offset + count, self._max)
                for r in self._read(block.address + at, min(self._max, offset + count - at))]

    def write_at(self, model_id: int, offset: int, registers: Sequence[int]) -> None:
        """Write registers of a model from `offset`. Raises `BadValue` beyond its end."""
        block, _ = self._need(model_id)
        self._inside(block, offset, len(registers))
        self._link.write_registers(self._unit, block.address + offset, list(registers))

    @staticmethod
    def _inside(block: Block, offset: int, count: int) -> None:
        if offset < 0 or offset + count > block.length + 2:
            raise BadValue(f'model {block.id} has L={block.length}: {count} registers at {offset} are not in it')

    def identity(self) -> Identity:
        """Manufacturer, model, serial number and version, as far as the common model has them."""
        if not self.has(1):
            return Identity()
        common = self.read(1)
        return Identity(common.text('Mn'), common.text('Md'), common.text('SN'), common.text('Vr'))

    def _read(self, address: int, count: int) -> list[int]:
        registers = self._link.read_holding(self._unit, address, count)
        if len(registers) != count:
            raise BadFrame(f'{len(registers)} registers instead of {count} at {address}')
        return registers
