"""The manifest: what leaves arrives exactly so or is refused by name, and no manifest is trusted."""

import json
import math
import struct
from collections import OrderedDict
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer import memory
from transfer.errors import ManifestError
from transfer.manifest import DTYPES, Value, pack, unpack


def travel(values: dict[str, Value]) -> dict[str, Value]:
    packed = pack(values)
    payload = memoryview(bytearray(b"\xff" * packed.nbytes))
    packed.write_into(payload)
    if (early := packed.checksum()) is not None:
        assert early == memory.checksum(payload)
    return unpack(packed.manifest, payload)


def identity(value: Value) -> Any:
    """A form in which only exactly equal values, types and bits are equal."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().resolve_conj().resolve_neg()
        bits = plain.view(torch.int32) if value.dtype == torch.complex32 else plain  # torch warns of it
        raw = bits.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return ("tensor", value.dtype, tuple(value.shape), raw)
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, [identity(item) for item in value])
    if isinstance(value, dict):
        return ("dict", [(key, identity(item)) for key, item in value.items()])
    if isinstance(value, float):
        return ("float", "nan" if math.isnan(value) else struct.pack("<d", value))
    return (type(value).__name__, value)


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    nbytes = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)
    if dtype == torch.bool:
        raw %= 2
    return raw.view(dtype).view(shape)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_and_layout(dtype: torch.dtype) -> None:
    whole = random_tensor(dtype, (3, 5, 4))
    tensors: dict[str, Value] = {
        "whole": whole,
        "scalar": whole[0, 0, 0],
        "transposed": whole.transpose(0, 2),
        "strided": whole[:, ::2, 1:],
        "expanded": whole[:, :1].expand(3, 7, 4),
        "empty": whole[:0],
        "dtype": dtype,
    }
    arrived = travel(tensors)
    assert list(arrived) == list(tensors)
    for name, tensor in tensors.items():
        assert identity(arrived[name]) == identity(tensor), name


def test_lazy_bits_and_parameters_travel_as_values() -> None:
    values = torch.randn(4, dtype=torch.complex64)
    parameter = torch.nn.Parameter(torch.randn(3))
    arrived = travel({"conj": values.conj(), "neg": values.conj().imag, "parameter": parameter})
    assert torch.equal(arrived["conj"], values.conj())  # type: ignore[arg-type]
    assert torch.equal(arrived["neg"], values.conj().imag)  # type: ignore[arg-type]
    assert torch.equal(arrived["parameter"], parameter)  # type: ignore[arg-type]


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.sampled_from(list(DTYPES.values()))
)
tensors = st.builds(
    random_tensor,
    st.sampled_from(list(DTYPES.values())),
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.integers(0, 99),
)
trees: st.SearchStrategy[Any] = st.recursive(
    scalars | tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=8), trees, max_size=5))
def test_round_trip_is_exact(values: dict[str, Value]) -> None:
    assert identity(travel(values)) == identity(values)


def test_tensors_are_aligned_views_and_padding_is_blank() -> None:
    packed = pack({"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(5)})
    payload = memoryview(bytearray(b"\xff" * packed.nbytes))
    packed.write_into(payload)
    assert bytes(payload[3:64]) == bytes(61)
    arrived = unpack(packed.manifest, payload)
    payload[0] = 7
    assert arrived["a"][0] == 7  # type: ignore[index]
    read_only = unpack(packed.manifest, payload.toreadonly())
    payload[0] = 8
    assert read_only["a"][0] == 7  # type: ignore[index]


class Color(IntEnum):
    RED = 1


class Subclass(torch.Tensor):
    pass


def nested(levels: int) -> Value:
    value: Value = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "a.b[1]: builtins.object cannot travel"),
        (np.float64(1), "a.b[1]: numpy.float64 cannot travel"),
        (Color.RED, "Color cannot travel"),
        (b"bytes", "builtins.bytes cannot travel"),
        (torch.Size([1]), "torch.Size cannot travel"),
        (OrderedDict(), "OrderedDict cannot travel"),
        ({1: 2}, "keys of a dict must be strings"),
        (1 << 64, "more than 64 bits"),
        (-(1 << 63) - 1, "more than 64 bits"),
        (torch.ones(2).to_sparse(), "sparse_coo tensor"),
        (torch.ones(2, device="meta"), "tensor on meta"),
        (torch.ones(2).as_subclass(Subclass), "type Subclass"),
        (torch.qint8, "torch.qint8 cannot travel"),
        (nested(40), "nested deeper than 16"),
        ([0] * 5000, "more than 4096 values"),
        ("x" * (1 << 20), "at most 1048576 can travel"),
    ],
)
def test_what_cannot_travel_is_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        pack({"a": {"b": [None, value]}})
    assert message in str(caught.value)


PAYLOAD_BYTES = 256


def of(tensor: Any) -> str:
    return json.dumps({"x": {"tensor": tensor}})


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("", "not JSON"),
        ("[]", "manifest is a list"),
        ("\u00ff", "not JSON"),
        ('{"x": NaN}', "NaN is not JSON"),
        ('{"x": 1e999}', "Infinity is no value"),
        ('{"x": 1, "x": 2}', "occurs twice"),
        ('{"x": ' + "[" * 20 + "]" * 20 + "}", "nested deeper"),
        ("[" * 100_000, "not JSON"),
        ('{"x": [' + "0," * 5000 + "0]}", "more than 4096"),
        ('{"x": ' + "9" * 30 + "}", "is no value"),
        ('{"x": "' + "y" * (1 << 20) + '"}', "at most"),
        ('{"x": {"what": 1}}', "is no value"),
        ('{"x": {"float": "1"}}', "is no value"),
        ('{"x": {"float": "nan", "tuple": []}}', "is no value"),
        ('{"x": {"dtype": "load"}}', "is no value"),
        (of(["uint8", [256]]), "is no value"),
        (of(["object", [1], 0]), "unknown dtype"),
        (of(["uint8", [-1], 0]), "is no shape"),
        (of(["uint8", [-1, -256], 0]), "is no shape"),
        (of(["uint8", [1.0], 0]), "is no shape"),
        (of(["uint8", [True], 0]), "is no shape"),
        (of(["uint8", [1] * 65, 0]), "is no shape"),
        (of(["uint8", [1 << 32, 1 << 32], 0]), "too large"),
        (of(["uint8", [0, 1 << 62, 1 << 62], 0]), "too large"),
        (of(["uint8", [257], 0]), "ends at byte 257"),
        (of(["uint8", [1], 1 << 70]), "ends at byte"),
        (of(["float32", [64], 64]), "ends at byte 320"),
        (of(["uint8", [256], -64]), "overlaps"),
        (of(["uint8", [64], 7]), "not aligned"),
        (of(["uint8", [64], True]), "not aligned"),
        (of(["uint8", [255], 0]), "describes 255 bytes, the payload has 256"),
        ('{"x": {"tensor": ["uint8", [65], 0]}, "y": {"tensor": ["uint8", [192], 64]}}', "y: offset 64"),
    ],
)
def test_hostile_manifests_are_refused(manifest: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        unpack(manifest.encode("latin-1"), memoryview(bytearray(PAYLOAD_BYTES)))
    assert message in str(caught.value)


json_trees: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["nan", "inf", "uint8", "float32", "complex64", "x"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["tensor", "dtype", "float", "tuple", "dict", "x"]), inner, max_size=2
        )
        | st.tuples(st.sampled_from(["uint8", "float32"]), st.lists(st.integers()), st.integers()).map(
            lambda fields: {"tensor": list(fields)}
        )
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    st.binary()
    | st.dictionaries(st.text(max_size=3), json_trees, max_size=4).map(lambda t: json.dumps(t).encode())
)
def test_no_manifest_does_anything_but_values_or_a_manifest_error(manifest: bytes) -> None:
    payload = memoryview(bytearray(PAYLOAD_BYTES))
    try:
        values = unpack(manifest, payload)
    except ManifestError:
        return
    assert identity(travel(values)) == identity(values)
