"""A downloaded adapter is checked without being read into memory, whatever its size."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from engine.events import AdapterSaved
from engine.measure.digest import tensor_digest
from engine.measure.safetensors_header import plan_layout
from engine.runner.collect import _check_file
from engine.wire import sha256_hex

MIB = 1024 * 1024


def _saved(sha256: str = "0" * 64, tensor_digest: str = "0" * 64) -> AdapterSaved:
    return AdapterSaved(segment="raw", sha256=sha256, tensor_digest=tensor_digest, size=1)


def test_a_large_adapter_is_compared_with_its_log_in_little_memory(tmp_path: Path) -> None:
    values = 16 * MIB
    header, _, size = plan_layout({"lora_A": ("F32", (values,))}, "{}")
    path = tmp_path / "adapter.safetensors"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(size)
    digests = {
        "sha256": sha256_hex(path.read_bytes()),
        "tensor_digest": tensor_digest([("lora_A", "F32", (values,), bytes(4 * values))]),
    }
    tracemalloc.start()
    try:
        outcome = _check_file(path, _saved(**digests))
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()
    assert (outcome.status, outcome.size) == ("opened", size)
    assert _check_file(path, _saved(**digests | {"tensor_digest": "0" * 64})).code == "adapter_other_tensors"


def test_an_empty_adapter_and_one_of_other_bytes_are_wrong(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(b"")
    assert _check_file(path, _saved()).code == "adapter_other_digest"
    assert _check_file(path, _saved(sha256=sha256_hex(b""))).code == "adapter_malformed"
