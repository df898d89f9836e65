from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.errors import DataError, MissingExtraError
from engine.payload.hub import HubModel, fetch_hub
from engine.payload.listing import CHAT_TEMPLATE, INDEX, SINGLE
from tests.fake_hub import MODEL, REVISION, TOKEN, FakeHub, serving
from tests.needs import LOCAL_EXTRA

pytest.importorskip("huggingface_hub", reason=LOCAL_EXTRA)
OTHER = "b" * 40


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", "/nonexistent")
    with serving() as server:
        yield server


def fetched(hub: FakeHub, cache: Path, *, anonymous: bool = True, revision: str = REVISION) -> HubModel:
    return fetch_hub(MODEL, revision, anonymous=anonymous, endpoint=hub.endpoint, cache=cache)


def refusal(hub: FakeHub, cache: Path, *, anonymous: bool = True, revision: str = REVISION) -> DataError:
    with pytest.raises(DataError) as caught:
        fetched(hub, cache, anonymous=anonymous, revision=revision)
    assert caught.value.hint
    assert TOKEN not in caught.value.message + caught.value.hint
    return caught.value


def in_shards(hub: FakeHub) -> list[str]:
    """Give the model's weights as two shards and an index; returns the names of the shards."""
    body = hub.files.pop(SINGLE)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    hub.files.update({"consolidated.safetensors": body, **dict.fromkeys(reversed(shards), body)})
    hub.files[INDEX] = json.dumps({"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}}).encode()
    return shards


def test_configuration_and_tokenizer_are_downloaded_and_of_the_weights_only_headers_are_read(
    hub: FakeHub, tmp_path: Path
) -> None:
    model = fetched(hub, tmp_path)
    assert model.tokenizer.read_bytes() == hub.files["tokenizer.json"]
    assert json.loads(model.config)["num_hidden_layers"] == 2
    size = len(hub.files[SINGLE])
    assert model.listing() == {
        "id": MODEL,
        "revision": REVISION,
        "files": {SINGLE: {"sha256": hashlib.sha256(hub.files[SINGLE]).hexdigest(), "size": size}},
    }
    assert model.download_bytes == size
    assert model.tensors["model.embed_tokens.weight"].dtype == "F32"
    assert model.tensors["model.embed_tokens.weight"].shape == (1024, 128)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_small_files_that_belong_beside_an_adapter_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    assert (fetched(hub, tmp_path).chat_template, fetched(hub, tmp_path).extras) == (None, {})
    small = {CHAT_TEMPLATE: b"{{ messages }}", "tokenizer_config.json": b"{ }", "generation_config.json": b"{}"}
    hub.files |= {**small, "README.md": b"not needed"}
    model = fetched(hub, tmp_path / "other")
    assert (model.chat_template, model.tokenizer_config) == (b"{{ messages }}", b"{ }")
    assert model.extras == {"generation_config.json": b"{}"}
    assert model.config == hub.files["config.json"]


def test_the_index_says_which_shards_belong_to_the_model(hub: FakeHub, tmp_path: Path) -> None:
    shards = in_shards(hub)
    hub.sizes = {shards[0]: 5_000_000_000, shards[1]: 3}
    model = fetched(hub, tmp_path)
    assert list(model.weights) == shards
    assert model.download_bytes == 5_000_000_003


def test_weights_whose_digest_the_hub_does_not_list_are_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.undigested = {SINGLE}
    assert refusal(hub, tmp_path).code == "model_weights_invalid"


@pytest.mark.parametrize(
    "index",
    [b"{", b"[]", b'{"weight_map": {}}', b'{"weight_map": {"a": "model.safetensors", "b": "absent.safetensors"}}'],
)
def test_an_unusable_index_is_refused(hub: FakeHub, tmp_path: Path, index: bytes) -> None:
    hub.files[INDEX] = index
    assert refusal(hub, tmp_path).code in ("model_index_invalid", "model_weights_invalid")


def gate(hub: FakeHub) -> None:
    hub.gated = "manual"


def close(hub: FakeHub) -> None:
    hub.closed = True


def hide(hub: FakeHub) -> None:
    hub.private = True


def exchange(hub: FakeHub) -> None:
    hub.sha = OTHER


def pickle(hub: FakeHub) -> None:
    hub.files["pytorch_model.bin"] = hub.files.pop(SINGLE)


def strip(hub: FakeHub) -> None:
    hub.files["model.gguf"] = hub.files.pop(SINGLE)


def remove(hub: FakeHub) -> None:
    del hub.files[SINGLE]


def only_sentencepiece(hub: FakeHub) -> None:
    hub.files["tokenizer.model"] = hub.files.pop("tokenizer.json")


def only_tekken(hub: FakeHub) -> None:
    hub.files["tekken.json"] = hub.files.pop("tokenizer.json")


def only_an_adapter(hub: FakeHub) -> None:
    hub.files = {"adapter_config.json": b"{}", "adapter_model.safetensors": hub.files[SINGLE]}


def large_config(hub: FakeHub) -> None:
    hub.sizes["config.json"] = 2 * 1024 * 1024


def large_template(hub: FakeHub) -> None:
    hub.files[CHAT_TEMPLATE] = b"x" * (1024 * 1024 + 1)


def many_modes(hub: FakeHub) -> None:
    hub.change_config(vision_config={}, architectures=["Gemma3ForConditionalGeneration"])


def two_halves(hub: FakeHub) -> None:
    hub.change_config(is_encoder_decoder=True, architectures=["T5ForConditionalGeneration"], model_type="t5")


def unknown_type(hub: FakeHub) -> None:
    hub.change_config(model_type="mamba")


def quantised(hub: FakeHub) -> None:
    hub.change_config(quantization_config={"quant_method": "mxfp4"})


def without_tokenizer(hub: FakeHub) -> None:
    del hub.files["tokenizer.json"]


def damage(hub: FakeHub) -> None:
    hub.files[SINGLE] = b"\xff" * 200


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (gate, "hub_gated"),
        (close, "hub_gated"),
        (hide, "hub_model_unknown"),
        (exchange, "hub_revision_unknown"),
        (pickle, "model_pickled"),
        (strip, "model_gguf"),
        (remove, "model_no_safetensors"),
        (only_sentencepiece, "model_tokenizer_unsupported"),
        (only_tekken, "model_tokenizer_unsupported"),
        (only_an_adapter, "model_is_adapter"),
        (large_config, "model_config_invalid"),
        (large_template, "model_config_invalid"),
        (many_modes, "model_multimodal"),
        (two_halves, "model_encoder_decoder"),
        (unknown_type, "architecture_unsupported"),
        (quantised, "model_quantised"),
        (without_tokenizer, "model_file_missing"),
        (damage, "model_weights_invalid"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_for_its_own_reason(
    hub: FakeHub, tmp_path: Path, change: Callable[[FakeHub], None], code: str
) -> None:
    change(hub)
    assert refusal(hub, tmp_path).code == code


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ((404, "RepoNotFound"), "hub_model_unknown"),
        ((404, "RevisionNotFound"), "hub_revision_unknown"),
        ((403, "GatedRepo"), "hub_gated"),
        ((403, ""), "hub_gated"),
        ((400, ""), "hub_unreachable"),
        ((429, ""), "hub_rate_limited"),
        ((500, ""), "hub_unreachable"),
    ],
)
def test_a_fault_of_the_hub_has_its_own_code(hub: FakeHub, tmp_path: Path, fault: tuple[int, str], code: str) -> None:
    hub.fault = fault
    assert refusal(hub, tmp_path).code == code


def test_a_revision_that_the_hub_does_not_have_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    assert refusal(hub, tmp_path, revision=OTHER).code == "hub_revision_unknown"


def test_a_login_is_used_only_to_tell_a_private_model_from_an_absent_one(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetched(hub, tmp_path).weights
    assert {token for _, token in hub.tokens} == {None}
    hub.private = True
    assert refusal(hub, tmp_path).code == "hub_private"
    assert {path for path, token in hub.tokens if token} == {f"/api/models/{MODEL}/revision/{REVISION}"}
    hub.private, hub.gated = False, "auto"
    assert refusal(hub, tmp_path).code == "hub_gated"


def test_on_this_machine_its_login_opens_private_and_gated_models(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = "auto"
    error = refusal(hub, tmp_path, anonymous=False)
    assert (error.code, "log in" in error.hint) == ("hub_gated", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.private = True
    assert fetched(hub, tmp_path, anonymous=False).weights
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    hub.fault = (403, "")
    assert refusal(hub, tmp_path, anonymous=False).code == "hub_login_rejected"


def test_an_invalid_model_name_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        fetch_hub("../../etc", REVISION, endpoint=hub.endpoint, cache=tmp_path)
    assert caught.value.code == "hub_model_unknown"


def test_a_hub_that_does_not_answer_is_reported_as_unreachable(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(DataError) as caught:
        fetch_hub(MODEL, REVISION, endpoint=endpoint, cache=tmp_path)
    assert caught.value.code == "hub_unreachable"
    assert "--model" in caught.value.hint


def test_offline_mode_is_named(hub: FakeHub, tmp_path: Path) -> None:
    """In a process of its own: the library reads the variable when it is imported."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom engine.payload.hub import fetch_hub\n"
        "try: fetch_hub(sys.argv[1], sys.argv[2], endpoint=sys.argv[3], cache=Path(sys.argv[4]))\n"
        "except Exception as error: print(error.code, error.message)"
    )
    arguments = [sys.executable, "-c", code, MODEL, REVISION, hub.endpoint, str(tmp_path)]
    output = subprocess.run(
        arguments, capture_output=True, text=True, check=True, env={"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    ).stdout
    assert output.startswith("hub_offline ")
    assert "HF_HUB_OFFLINE" in output
    assert hub.tokens == []


def test_without_the_hubs_library_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from engine.payload.hub import fetch_hub\n"
        "try: fetch_hub('a/b', 'c' * 40)\n"
        "except Exception as error: print(type(error).__name__, error.hint)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.startswith(MissingExtraError.__name__)
    assert "glasshouse[local]" in output
