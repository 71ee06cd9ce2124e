"""Values to bytes and back: a JSON manifest for structure and scalars, a payload for tensors.

JSON holds what it can express exactly; the rest is an object with one key that says what it is:
`{"tensor": [dtype, shape, offset]}`, `{"dtype": name}`, `{"float": "nan"}`, `{"tuple": [...]}` and
`{"dict": {...}}`. Offsets are bytes into the payload.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias, Union

import torch
import xxhash

from transfer import device, memory
from transfer.errors import ManifestError

Value: TypeAlias = Union[
    torch.Tensor,
    torch.dtype,
    bool,
    int,
    float,
    str,
    "list[Value]",
    "tuple[Value, ...]",
    "dict[str, Value]",
    None,
]

ALIGNMENT = 64
MAX_MANIFEST_BYTES = 1 << 20
MAX_ENTRIES = 4096
MAX_DEPTH = 16
MAX_DIMENSIONS = 64

# fmt: off
DTYPES: dict[str, torch.dtype] = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.complex32, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu, torch.float4_e2m1fn_x2,
)}
# fmt: on
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Bits are copied as integers of the same width: every dtype can be viewed so, not every dtype can be copied.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


class Packed:
    """Values on their way: `manifest` says what `nbytes` of payload will hold."""

    def __init__(self, manifest: bytes, nbytes: int, tensors: list[tuple[int, torch.Tensor]]) -> None:
        self.manifest = manifest
        self.nbytes = nbytes
        self._tensors = tensors

    def write_into(self, payload: memoryview) -> None:
        """Copies each tensor to its offset in `payload` (`nbytes` long, writable): the only copy made.

        Blocks until the bytes are there, for tensors on a device too, which must be computed.
        """
        end = 0
        elsewhere = []
        for offset, tensor in self._tensors:
            payload[end:offset] = bytes(offset - end)  # padding must not show what lay here before
            end = offset + tensor.nbytes
            target = payload[offset:end]
            if (source := _bytes_of(tensor)) is not None:
                memory.copy(target, source)
            elif target.nbytes:
                bits = tensor.view(_BITS[tensor.itemsize])
                host = torch.frombuffer(target, dtype=bits.dtype).view(bits.shape)
                if tensor.device.type == "cpu":
                    host.copy_(bits)
                else:
                    elsewhere.append((host, bits))
        device.download(elsewhere)

    def checksum(self) -> int | None:
        """xxh3-64 of the payload to be, so that hashing can overlap with copying.

        None if a tensor must be copied before its bytes can be seen, for it lies on a device or not
        in order.
        """
        digest, end = xxhash.xxh3_64(), 0
        for offset, tensor in self._tensors:
            if (source := _bytes_of(tensor)) is None:
                return None
            digest.update(bytes(offset - end))
            digest.update(source)
            end = offset + tensor.nbytes
        return digest.intdigest()


def pack(values: Mapping[str, Value]) -> Packed:
    """Lays out `values`; no tensor is copied yet.

    Of a tensor its dtype, shape and elements travel; strides, device and gradients do not. Raises
    ManifestError that names what cannot travel: other types and subclasses, integers beyond 64 bits,
    sparse, quantised and meta tensors, and anything over the limits of this module.
    """
    packer = _Packer()
    if not all(type(name) is str for name in values):
        raise ManifestError("names of values must be strings")
    tree = {name: packer.encode(value, name, 1) for name, value in values.items()}
    manifest = json.dumps(tree, allow_nan=False, separators=(",", ":")).encode()
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"manifest of {len(manifest)} bytes, at most {MAX_MANIFEST_BYTES} can travel")
    return Packed(manifest, packer.nbytes, packer.tensors)


def unpack(manifest: bytes, payload: memoryview) -> dict[str, Value]:
    """Rebuilds the values; tensors are views of `payload` (of a copy if it is read-only).

    Nothing in `manifest` is trusted: raises ManifestError unless it describes exactly this payload.
    """
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"manifest of {len(manifest)} bytes, at most {MAX_MANIFEST_BYTES} are read")
    try:
        tree = json.loads(
            manifest.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"manifest is not JSON: {error}") from None
    if type(tree) is not dict:
        raise ManifestError(f"manifest is a {type(tree).__name__}, expected an object")
    unpacker = _Unpacker(memoryview(bytearray(payload)) if payload.readonly else payload)
    values = {name: unpacker.decode(node, name, 1) for name, node in tree.items()}
    if unpacker.end != payload.nbytes:
        raise ManifestError(f"manifest describes {unpacker.end} bytes, the payload has {payload.nbytes}")
    return values


class _Packer:
    """Turns values into JSON and lays their tensors out one behind the other."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.tensors: list[tuple[int, torch.Tensor]] = []
        self._entries = 0

    def encode(self, value: Value, path: str, depth: int) -> object:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise ManifestError(f"{path}: more than {MAX_ENTRIES} values cannot travel at once")
        if depth > MAX_DEPTH:
            raise ManifestError(f"{path}: nested deeper than {MAX_DEPTH} levels")
        # Exact types: a subclass would arrive as something else than it left as.
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is int and -(1 << 63) <= value < 1 << 64:  # type: ignore[operator]
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}  # type: ignore[arg-type]
        if isinstance(value, torch.dtype):
            return {"dtype": _dtype_name(value, path)}
        if isinstance(value, torch.Tensor):
            return {"tensor": self._place(value, path)}
        if isinstance(value, (list, tuple)) and kind in (list, tuple):
            nodes = [self.encode(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
            return nodes if kind is list else {"tuple": nodes}
        if isinstance(value, dict) and kind is dict:
            if not all(type(key) is str for key in value):
                raise ManifestError(f"{path}: keys of a dict must be strings")
            return {"dict": {k: self.encode(v, f"{path}.{k}", depth + 1) for k, v in value.items()}}
        if kind is int:
            raise ManifestError(f"{path}: an integer of more than 64 bits cannot travel")
        raise ManifestError(f"{path}: {kind.__module__}.{kind.__qualname__} cannot travel")

    def _place(self, tensor: torch.Tensor, path: str) -> list[object]:
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.is_nested:
            raise ManifestError(f"{path}: tensor of type {type(tensor).__qualname__} cannot travel")
        if tensor.layout != torch.strided or tensor.device.type == "meta":
            raise ManifestError(f"{path}: {tensor.layout} tensor on {tensor.device.type} cannot travel")
        name = _dtype_name(tensor.dtype, path)
        offset = -(-self.nbytes // ALIGNMENT) * ALIGNMENT
        tensor = tensor.detach().resolve_conj().resolve_neg()
        self.tensors.append((offset, tensor))
        self.nbytes = offset + tensor.nbytes
        return [name, list(tensor.shape), offset]


class _Unpacker:
    """Turns checked JSON into values; remembers up to where the payload has been claimed."""

    def __init__(self, payload: memoryview) -> None:
        self.end = 0
        self._payload = payload
        self._entries = 0

    def decode(self, node: object, path: str, depth: int) -> Value:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise ManifestError(f"{path}: more than {MAX_ENTRIES} values")
        if depth > MAX_DEPTH:
            raise ManifestError(f"{path}: nested deeper than {MAX_DEPTH} levels")
        if node is None or isinstance(node, (bool, str)):
            return node
        if isinstance(node, int) and -(1 << 63) <= node < 1 << 64:
            return node
        if isinstance(node, float) and math.isfinite(node):
            return node
        if isinstance(node, list):
            return [self.decode(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node)]
        match node:
            case {"tensor": [str(name), list(shape), int(offset)], **rest} if not rest:
                return self._view(name, shape, offset, path)
            case {"tuple": list(nodes), **rest} if not rest:
                return tuple(self.decode(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(nodes))
            case {"dict": dict(nodes), **rest} if not rest:
                return {key: self.decode(item, f"{path}.{key}", depth + 1) for key, item in nodes.items()}
            case {"dtype": str(name), **rest} if not rest and name in DTYPES:
                return DTYPES[name]
            case {"float": "nan" | "inf" | "-inf" as text, **rest} if not rest:
                return float(text)
        raise ManifestError(f"{path}: {json.dumps(node)[:80]} is no value")

    def _view(self, name: str, shape: list[Any], offset: int, path: str) -> torch.Tensor:
        if name not in DTYPES:
            raise ManifestError(f"{path}: unknown dtype {name[:80]!r}")
        if len(shape) > MAX_DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
            raise ManifestError(f"{path}: {str(shape)[:80]} is no shape")
        if math.prod(max(1, size) for size in shape) >= 1 << 56:  # strides would overflow in torch
            raise ManifestError(f"{path}: shape {str(shape)[:80]} is too large")
        dtype = DTYPES[name]
        nbytes = math.prod(shape) * dtype.itemsize
        if type(offset) is not int or offset % ALIGNMENT or offset < self.end:
            raise ManifestError(f"{path}: offset {offset} is not aligned or overlaps the tensor before")
        if offset + nbytes > self._payload.nbytes:
            end = offset + nbytes
            raise ManifestError(f"{path}: ends at byte {end} of a payload of {self._payload.nbytes}")
        self.end = offset + nbytes
        if nbytes:
            raw = torch.frombuffer(self._payload, dtype=torch.uint8, count=nbytes, offset=offset)
        else:
            raw = torch.empty(0, dtype=torch.uint8)
        return raw.view(dtype).view(shape)


def _bytes_of(tensor: torch.Tensor) -> memoryview | None:
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _dtype_name(dtype: torch.dtype, path: str) -> str:
    if dtype not in _NAMES:
        raise ManifestError(f"{path}: {dtype} cannot travel")
    return _NAMES[dtype]


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice in an object")
    return result


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
