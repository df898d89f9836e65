"""What a model's list of files already says: formats that are not read here, each with its own code and way out."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from engine.errors import DataError
from engine.worker.architecture import converting

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
CHAT_TEMPLATE: Final = "chat_template.jinja"
EXTRAS: Final = ("generation_config.json", "special_tokens_map.json", "added_tokens.json")
"""Small files that belong beside an adapter, so that whoever loads it generates as the model was made to."""
SMALL_FILES: Final = {
    TOKENIZER_CONFIG: 16 * 1024 * 1024,
    CHAT_TEMPLATE: 1024 * 1024,
    **dict.fromkeys(EXTRAS, 1024 * 1024),
}
"""Files that a model may have, with the largest size in bytes that is read."""
_PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SENTENCEPIECE: Final = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json")


def check_listing(model: str, names: Collection[str]) -> None:
    """Check the names of a model's files; `model` names it in errors.

    Raises `DataError`: `model_is_adapter`, `model_gguf`, `model_pickled`, `model_no_safetensors`,
    `model_tokenizer_unsupported`. A missing config.json or tokenizer.json is left to whoever reads them.
    """
    if INDEX not in names and SINGLE not in names:
        raise _without_weights(model, names)
    if TOKENIZER not in names and any(name in names for name in _SENTENCEPIECE):
        found = next(name for name in _SENTENCEPIECE if name in names)
        raise DataError(
            f"{model} has its tokenizer as {found} only, and {TOKENIZER} is needed.",
            'Convert it: run pip install sentencepiece protobuf mistral-common tiktoken, then python -c "from '
            "transformers import AutoTokenizer as T; T.from_pretrained('MODEL').save_pretrained('FOLDER')\"",
            code="model_tokenizer_unsupported",
        )


def _without_weights(model: str, names: Collection[str]) -> DataError:
    gguf = next((name for name in sorted(names) if name.lower().endswith(".gguf")), None)
    if gguf is not None:
        return DataError(
            f"{model} has its weights in GGUF, a format for inference.",
            f"Choose the model that the file was made from, or convert it: run {converting(_gguf_arguments(gguf))}",
            code="model_gguf",
        )
    if "adapter_config.json" in names:
        return DataError(
            f"{model} is a LoRA adapter, not a whole model.",
            "Give the model that it was trained on (base_model_name_or_path in its adapter_config.json).",
            code="model_is_adapter",
        )
    if any(name.endswith(_PICKLED) for name in names):
        return DataError(
            f"{model} has its weights as pickle files only, which can run code when they are read.",
            f"Choose a revision with safetensors, or, if you trust its authors, convert it: run {converting()}",
            code="model_pickled",
        )
    return DataError(
        f"{model} has no weights in safetensors: no {SINGLE} and no {INDEX}.",
        "Choose a model or a revision with weights in safetensors, or save it again with save_pretrained.",
        code="model_no_safetensors",
    )


def _gguf_arguments(name: str) -> str:
    plain = name if name.isascii() and name.isprintable() and "'" not in name and '"' not in name else "FILE.gguf"
    return f"'MODEL', gguf_file='{plain}')"
