"""Merging: in the base's own data type, with the adapter that fits it, and of the given files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from engine.errors import RefusedError
from engine.payload.adapter_config import planned
from engine.payload.model import describe_model
from engine.payload.weights import lora_start, uniform
from engine.plan import preset
from engine.records.adapters.base_model import Files, tiny_files
from engine.records.adapters.merge import merge
from engine.wire import canonical
from tests.needs import LOCAL_EXTRA

torch: Any = pytest.importorskip("torch", reason=LOCAL_EXTRA)

PLAN = preset("demo")
CONFIG = canonical(planned(PLAN))


def tensors() -> dict[str, Any]:
    """An adapter that changes every target."""
    start = lora_start(1, describe_model(PLAN, None).linears, PLAN.lora.r, PLAN.lora.targets)
    return {name: uniform(2, name, one.shape, 0.1) for name, one in start.items()}


def in_float32() -> Files:
    """The shipped model as float32."""
    from safetensors.torch import load
    from safetensors.torch import save as save_torch

    files = tiny_files()
    config, weights = files["config.json"], files["model.safetensors"]
    assert isinstance(config, bytes)
    assert isinstance(weights, bytes)
    doubled = {name: one.to(torch.float32) for name, one in load(weights).items()}
    changed = json.dumps({**json.loads(config), "dtype": "float32"}).encode()
    return {"config.json": changed, "model.safetensors": save_torch(doubled, metadata={"format": "pt"})}


def weights_in(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(folder / "model.safetensors")
    return found


@pytest.mark.parametrize(("base", "dtype", "slack"), [(tiny_files(), "bfloat16", 0.01), (None, "float32", 1e-6)])
def test_the_merged_weights_are_base_plus_scaled_product_in_the_bases_type(
    tmp_path: Path, base: Files | None, dtype: str, slack: float
) -> None:
    from safetensors.torch import load

    files, adapter = base or in_float32(), tensors()
    merge(files, save(adapter), CONFIG, tmp_path)
    found = weights_in(tmp_path)
    before = files["model.safetensors"]
    assert isinstance(before, bytes)
    assert {one.dtype for one in found.values()} == {getattr(torch, dtype)}
    for name, old in load(before).items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        change = np.zeros(tuple(old.shape), np.float32)
        if f"{stem}.lora_A.weight" in adapter:
            change = adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
            change *= PLAN.lora.alpha / PLAN.lora.r
        np.testing.assert_allclose(found[name].float().numpy(), old.float().numpy() + change, atol=slack, rtol=slack)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    all_of_it = tensors()
    some = {name: one for name, one in all_of_it.items() if ".layers.0." in name}
    renamed = {name.replace(".layers.1.", ".layers.7."): one for name, one in all_of_it.items()}
    for wrong in (some, renamed, {**all_of_it, "other.weight": np.zeros(1, np.float32)}):
        with pytest.raises(RefusedError) as caught:
            merge(tiny_files(), save(wrong), CONFIG, tmp_path)
        assert caught.value.code == "adapter_not_of_base"


def test_weights_that_would_not_be_finite_are_refused(tmp_path: Path) -> None:
    broken = {name: np.full_like(one, np.nan) for name, one in tensors().items()}
    with pytest.raises(RefusedError) as caught:
        merge(tiny_files(), save(broken), CONFIG, tmp_path)
    assert caught.value.code == "merge_not_finite"
