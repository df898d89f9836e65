"""The settings that determine a training step bit by bit: pinned alike for both segments, and recorded."""

from __future__ import annotations

import os
import warnings
from typing import Any, Final

# Read by the maths libraries when they load, so it is set before the trainer's process starts.
ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYTHONHASHSEED": "0",
    # One arena for all threads: the heap sweep reaches only the main arena.
    "MALLOC_ARENA_MAX": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def pin(noise_seed: int) -> None:
    """Pin threads, determinism and the generator of `torch`; call once, before any tensor exists."""
    import torch

    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    warnings.filterwarnings("ignore", message="The given buffer is not writable")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    seed(noise_seed)
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)


def seed(noise_seed: int) -> None:
    """Set every generator of `torch`, those of GPUs too."""
    import torch

    torch.manual_seed(noise_seed)


def recorded(device: str, dtype: str) -> dict[str, Any]:
    """The pinned state as observed; equal in both segments or the losses may not be compared bit by bit."""
    import torch

    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "cpuCapability": torch.backends.cpu.get_cpu_capability(),
        "mkl": bool(torch.backends.mkl.is_available()),
        "mklCbwr": os.environ.get("MKL_CBWR", ""),
        "device": device,
        "dtype": dtype,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
