"""The model with its LoRA adapter, built over mapped files without copying the frozen weights on a CPU."""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from engine.errors import SealingError
from engine.measure.safetensors_header import TensorSpec, read_header
from engine.plan import Plan
from engine.wire import parse
from engine.worker import architecture

ADAPTER_NAME: Final = "default"


class Mapped:
    """A read-only map of one payload file."""

    def __init__(self, fd: int) -> None:
        self.size = os.fstat(fd).st_size
        self.map = mmap.mmap(fd, self.size, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
        self.view = memoryview(self.map)

    def close(self) -> None:
        """Unmap. Tensors over this map must be gone."""
        self.view.release()
        self.map.close()


class Workload:
    """Everything that a training step uses. `trainable` maps peft key names to parameters, in name order."""

    def __init__(
        self, model: Any, trainable: dict[str, Any], tokens: dict[str, Any], device: str, dtype: str, maps: list[Mapped]
    ) -> None:
        self.model = model
        self.trainable = trainable
        self.tokens = tokens
        self.device = device
        self.dtype = dtype
        self.maps = maps


def import_architecture(model_type: str) -> None:
    """Import what the model needs; afterwards the process may lose the right to open files.

    Raises `DataError` (`architecture_unsupported`).
    """
    architecture.require(model_type, ("raw",))
    import peft  # noqa: F401

    if model_type == "qwen2":
        from transformers.models.qwen2 import modeling_qwen2  # noqa: F401
    else:
        from transformers import AutoConfig, AutoModelForCausalLM  # noqa: F401


def choose_device(plan: Plan) -> tuple[str, str]:
    """`(device, dtype)`: CUDA when there is one; bfloat16 where the device has it, float32 on a CPU."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if plan.training.dtype != "auto":
        return device, plan.training.dtype
    return device, "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def empty_model(config: Mapping[str, Any]) -> Any:
    """The causal language model of a config, its weights not initialised."""
    from transformers.initialization import no_init_weights

    settings = {key: value for key, value in config.items() if key not in {"torch_dtype", "dtype"}}
    if settings.get("model_type") == "qwen2":
        from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
        from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

        qwen_config = Qwen2Config(**settings)
        qwen_config._attn_implementation = "sdpa"
        with no_init_weights():
            return Qwen2ForCausalLM(qwen_config)
    from transformers import AutoConfig, AutoModelForCausalLM

    auto_config = AutoConfig.for_model(**settings)
    with no_init_weights():
        return AutoModelForCausalLM.from_config(auto_config, attn_implementation="sdpa")


def add_lora(model: Any, plan: Plan) -> Any:
    """The model with LoRA layers on the plan's targets (peft), in training mode."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(
            model,
            LoraConfig(
                r=plan.lora.r,
                lora_alpha=plan.lora.alpha,
                target_modules=list(plan.lora.targets),
                lora_dropout=0.0,
                bias="none",
                task_type="CAUSAL_LM",
                init_lora_weights=False,
            ),
        )
    peft_model.train()
    return peft_model


def load(plan: Plan, files: Mapping[str, int]) -> Workload:
    """Build the workload from payload files given as name -> descriptor.

    Raises `SealingError` (`payload_incomplete`) if the files do not match the model, and what
    `architecture.check_config` and its like raise for a model that the operator's machine would have refused.
    """
    import torch

    device, dtype_name = choose_device(plan)
    dtype = getattr(torch, dtype_name)
    maps = {name: Mapped(fd) for name, fd in files.items()}
    config = parse(bytes(maps["config.json"].view))
    architecture.check_config(config, ())
    model = empty_model(config)
    _place_weights(model, [maps[name] for name in sorted(maps) if name.startswith("weights")], dtype)
    model.tie_weights()
    model.requires_grad_(False)
    model.to(device)
    peft_model = add_lora(model, plan)
    trainable = _place_adapter(peft_model, maps["adapter.safetensors"], device)
    tokens = {name: _tensor(maps["tokens.safetensors"], spec) for name, spec in _specs(maps["tokens.safetensors"])}
    return Workload(peft_model, trainable, tokens, device, dtype_name, list(maps.values()))


def _specs(mapped: Mapped) -> list[tuple[str, TensorSpec]]:
    return list(read_header(mapped.view).items())


def _tensor(mapped: Mapped, spec: TensorSpec) -> Any:
    import torch

    dtypes = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
        "BOOL": torch.bool,
    }  # fmt: skip
    view = mapped.view[spec.start : spec.end]
    return torch.frombuffer(view, dtype=dtypes[spec.dtype]).reshape(spec.shape)


def _place_weights(model: Any, shards: list[Mapped], dtype: Any) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    placed: set[str] = set()
    for shard in shards:
        for name, spec in _specs(shard):
            parameter = parameters.get(name)
            if parameter is None:
                continue
            architecture.check_dtype(name, spec.dtype)
            tensor = _tensor(shard, spec)
            if tensor.shape != parameter.shape:
                raise SealingError(
                    f"The shape of the weight {name} differs from the model's config.",
                    "Check that config.json and the weights belong together.",
                    code="payload_incomplete",
                )
            parameter.data = tensor if tensor.dtype == dtype else tensor.to(dtype)
            placed.add(name)
    tied = {architecture.HEAD} if model.config.get_text_config().tie_word_embeddings else set()
    absent = sorted(set(parameters) - placed - tied)
    if absent:
        raise architecture.missing_weights(absent)


def _place_adapter(model: Any, start: Mapped, device: str) -> dict[str, Any]:
    import torch

    trainable: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        trainable[name.replace(f".{ADAPTER_NAME}.", ".")] = parameter
    specs = dict(_specs(start))
    if set(specs) != set(trainable):
        raise SealingError(
            "The initial adapter does not match the model's LoRA layers.",
            "Check the LoRA targets of the plan.",
            code="payload_incomplete",
        )
    with torch.no_grad():
        for name, parameter in trainable.items():
            # In float32 whatever the base model's type: small updates would be lost in bfloat16.
            parameter.data = _tensor(start, specs[name]).to(device=device, dtype=torch.float32, copy=True)
    return {name: trainable[name] for name in sorted(trainable)}


class Rehearsal(msgspec.Struct, frozen=True):
    """A tiny model of the same architecture that runs every import before the process is locked down."""

    model_type: str

    def config(self) -> dict[str, Any]:
        """A config small enough to build in milliseconds."""
        architecture.require(self.model_type, ("protected",))
        return {
            "model_type": "qwen2",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 32,
            "vocab_size": 64,
            "tie_word_embeddings": True,
            "use_cache": False,
        }
