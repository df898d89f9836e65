"""Base model and adapter as one model folder, computed on this machine by peft."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from engine.errors import MissingExtraError, RefusedError
from engine.records.adapters.base_model import Files
from engine.system.new_folder import write_file

_NEEDED: Final = "Install glasshouse[local]."


def require_libraries() -> None:
    """Raise `MissingExtraError` unless the libraries that merge are installed; loads none of them."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"Merging needs {', '.join(missing)}, not installed here.", _NEEDED)


def merge(base: Files, adapter: bytes | bytearray | memoryview, config: bytes, target: Path) -> None:
    """Write the merged model into the folder `target`: config.json and safetensors, in the base's own data type.

    `config` is the adapter's adapter_config.json. Nothing that the model folder may bring as code is run, and nothing
    is downloaded. Raises `RefusedError` (`adapter_not_of_base`, `merge_not_finite`) and `MissingExtraError`.
    """
    require_libraries()
    import torch
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tensors = load(bytes(adapter))
    with _folder_of(base) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about the libraries' use of each other
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        with torch.no_grad():
            adapted = get_peft_model(model, PeftConfig.from_peft_type(**json.loads(config)))
            result = set_peft_model_state_dict(adapted, tensors)
            expected = sum("lora_" in name for name, _ in adapted.named_parameters())
            if result.unexpected_keys or expected != len(tensors):
                raise _not_of_base()
            merged = _merged(adapted)
        merged.save_pretrained(target)


def _merged(adapted: Any) -> Any:
    try:
        return adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:  # safe_merge looks for values that are not finite
        raise RefusedError(
            "The merged weights would not all be finite.",
            "Use the adapter beside the base model, or train with a smaller --lr.",
            code="merge_not_finite",
        ) from error


def _not_of_base() -> RefusedError:
    return RefusedError(
        "The adapter's tensors do not fit the modules that its configuration names in this base model.",
        "Give the base model that the run trained on.",
        code="adapter_not_of_base",
    )


@contextmanager
def _folder_of(files: Files) -> Iterator[str]:
    """A private folder with these files alone: what else lies in a model folder is not loaded."""
    with tempfile.TemporaryDirectory(prefix="glasshouse-base-") as name:
        for file, content in files.items():
            if isinstance(content, Path):
                Path(name, file).symlink_to(content.resolve())
            else:
                write_file(Path(name, file), content)
        yield name
