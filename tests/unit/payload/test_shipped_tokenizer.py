from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engine.system.resources import data_path

FILE = data_path("tiny_model", "tokenizer.json")
MAKER = Path(__file__).parents[3] / "data" / "make_tokenizer.py"
TOKENIZER = Tokenizer.from_file(str(FILE))


def test_the_script_recreates_the_shipped_file(tmp_path: Path) -> None:
    again = tmp_path / "tokenizer.json"
    subprocess.run([sys.executable, str(MAKER), str(again)], check=True)
    assert again.read_bytes() == FILE.read_bytes()


def test_its_ids_fit_the_models_configuration() -> None:
    config = json.loads(data_path("tiny_model", "config.json").read_bytes())
    assert TOKENIZER.get_vocab_size() == config["vocab_size"]
    assert TOKENIZER.token_to_id("<|endoftext|>") == config["pad_token_id"]
    assert TOKENIZER.token_to_id("<|im_end|>") == config["eos_token_id"]
    assert TOKENIZER.token_to_id("<|im_start|>") == 1


SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


# Hypothesis also tries the string constants of the code under test, and decoding leaves special tokens out.
@given(st.text(st.characters(max_codepoint=0x2FF)).filter(lambda text: not any(token in text for token in SPECIAL)))
def test_any_text_survives_the_round_trip(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text
