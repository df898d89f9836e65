"""The model with its LoRA adapter, built over mapped files without copying the frozen weights on a CPU."""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Collection, Mapping
from typing import Any, Final

from engine.errors import SealingError
from engine.measure.safetensors_header import TensorSpec, read_header
from engine.plan import Plan
from engine.wire import parse
from engine.worker import architecture, linears
from engine.worker.isolation.memfd import address_of
from engine.worker.training import classes

ADAPTER_NAME: Final = "default"


class Mapped:
    """A read-only map of one payload file."""

    def __init__(self, fd: int) -> None:
        self.size = os.fstat(fd).st_size
        self.map = mmap.mmap(fd, self.size, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
        self.view = memoryview(self.map)
        self.address = address_of(self.map)

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
    architecture.require(model_type)
    import peft  # noqa: F401

    classes.import_classes(model_type)


def choose_device(plan: Plan) -> tuple[str, str]:
    """`(device, dtype)`: CUDA when there is one; bfloat16 where the device has it, float32 on a CPU."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if plan.training.dtype != "auto":
        return device, plan.training.dtype
    return device, "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def filled_model(config: Mapping[str, Any], weights: Mapping[str, Any], dtype: Any) -> Any:
    """The causal language model of a config.json, over the tensors of its weight files where that needs no copy.

    transformers renames and joins weights whose files have another layout than its class, such as experts; what it
    joins is copied. Raises `DataError` (`model_weights_missing`), and `SealingError` (`payload_incomplete`) for
    weights of another shape.
    """
    # Read at each load: threads would be started after the process was locked down.
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    causal, settings = classes.configured(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, report = causal.from_pretrained(
            None,
            config=settings,
            state_dict=dict(weights),
            dtype=dtype,
            attn_implementation=classes.attention(causal),
            experts_implementation="eager",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
        )
    if report["mismatched_keys"]:
        name = min(str(one[0]) for one in report["mismatched_keys"])
        raise SealingError(
            f"The shape of the weight {name} differs from the model's config.",
            "Check that config.json and the weights belong together.",
            code="payload_incomplete",
        )
    if report["missing_keys"]:
        raise architecture.weights_missing(sorted(map(str, report["missing_keys"])))
    model.config.use_cache = False
    return model.requires_grad_(False)


def linears_of(model: Any) -> dict[str, linears.Shape]:
    """The model's dense linear layers."""
    import torch

    shapes = {
        f"{name}.weight": tuple(module.weight.shape)
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear
    }
    experts = {name: tuple(one.shape) for name, one in model.named_parameters() if ".experts." in name}
    return linears.dense_linears({**experts, **shapes}, model.config.get_text_config().num_hidden_layers)


def target_endings(model: Any, targets: Collection[str]) -> tuple[str, ...]:
    """The endings of module names that a plan's LoRA targets stand for in this model."""
    import torch

    others = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    return linears.endings(linears_of(model), others, targets)


def add_lora(model: Any, plan: Plan, targets: Collection[str] | None = None) -> Any:
    """The model with LoRA layers on the plan's targets, or on others (peft), in training mode."""
    from peft import LoraConfig, get_peft_model

    chosen = target_endings(model, plan.lora.targets) if targets is None else targets
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(
            model,
            LoraConfig(
                r=plan.lora.r,
                lora_alpha=plan.lora.alpha,
                target_modules=list(chosen),
                lora_dropout=0.0,
                bias="none",
                task_type="CAUSAL_LM",
                init_lora_weights=False,
            ),
        )
        if plan.training.gradient_checkpointing:
            # Without reentrance the frozen inputs of a layer need no gradient.
            peft_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
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
    architecture.check_config(config)
    model = filled_model(config, _weights(maps), dtype)
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


def _weights(maps: Mapping[str, Mapped]) -> dict[str, Any]:
    """Every tensor of the weight files, over their maps."""
    found: dict[str, Any] = {}
    for name in sorted(name for name in maps if name.startswith("weights")):
        for tensor, spec in _specs(maps[name]):
            architecture.check_dtype(tensor, spec.dtype)
            found[tensor] = _tensor(maps[name], spec)
    return found


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
