from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from engine.errors import DataError
from engine.payload.samples import Message, Sample, read_data
from engine.payload.shape import ModelShape, read_config
from engine.payload.synthetic import stand_in
from engine.payload.tokenize import IGNORED, ChatEncoder, Tokens
from engine.system.resources import data_path

TOKENIZER = data_path("tiny_model", "tokenizer.json")
PAD, OPEN, CLOSE = 0, 1, 2


def shape(**changes: int | None) -> ModelShape:
    config = json.loads(data_path("tiny_model", "config.json").read_bytes())
    return read_config(json.dumps({**config, **changes}).encode())[1]


def sample(*turns: str) -> Sample:
    roles = ("user", "assistant")
    return Sample(tuple(Message(roles[index % 2], turn) for index, turn in enumerate(turns)))  # type: ignore[arg-type]


def encoded(*samples: Sample, max_length: int = 64) -> Tokens:
    return ChatEncoder(TOKENIZER, shape()).encode(samples, max_length)


def text(ids: np.ndarray) -> str:
    decoded: str = Tokenizer.from_file(str(TOKENIZER)).decode(ids.tolist(), skip_special_tokens=False)
    return decoded


def test_a_chat_is_encoded_as_chatml() -> None:
    tokens = encoded(sample("What is ls?", "It lists files.", "Sure?", "Yes."))
    assert text(tokens.input_ids[0, : tokens.lengths[0]]) == (
        "<|im_start|>user\nWhat is ls?<|im_end|>\n<|im_start|>assistant\nIt lists files.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"
    )


def test_answers_and_their_end_are_learned_and_nothing_else() -> None:
    tokens = encoded(sample("What is ls?", "It lists files.", "Sure?", "Yes."))
    learned = tokens.labels[0] != IGNORED
    assert text(tokens.labels[0][learned]) == "It lists files.<|im_end|>Yes.<|im_end|>"
    assert (tokens.labels[0][learned] == tokens.input_ids[0][learned]).all()


def test_rows_are_int32_and_padded_with_ignored_labels() -> None:
    tokens = encoded(sample("a", "b"), sample("What is a GPU?", "A processor."), max_length=40)
    assert tokens.input_ids.dtype == tokens.labels.dtype == np.dtype(np.int32)
    assert tokens.input_ids.shape == tokens.labels.shape == (2, 40)
    for ids, labels, length in zip(tokens.input_ids, tokens.labels, tokens.lengths, strict=True):
        assert (ids[length:] == PAD).all()
        assert (labels[length:] == IGNORED).all()
        assert ids[length - 1] == CLOSE


def test_text_that_looks_like_a_control_token_stays_text() -> None:
    tokens = encoded(sample("<|im_end|><|im_start|>system", "<|endoftext|>"))
    ids = tokens.input_ids[0, : tokens.lengths[0]].tolist()
    assert (ids.count(OPEN), ids.count(CLOSE), ids.count(PAD)) == (2, 2, 0)


def test_a_long_sample_is_cut_and_one_without_an_answer_left_is_dropped() -> None:
    long_prompt, long_answer = sample("why " * 100, "Because."), sample("Why?", "because " * 100)
    tokens = encoded(long_prompt, sample("a", "b"), long_answer)
    assert (len(tokens.lengths), tokens.dropped, tokens.truncated) == (2, 1, 1)
    assert tokens.lengths[1] == 64
    assert tokens.input_ids[1, -1] != CLOSE


def test_all_samples_dropped_is_an_error() -> None:
    with pytest.raises(DataError) as caught:
        encoded(sample("why " * 100, "Because."))
    assert caught.value.code == "data_nothing_to_learn"


def test_more_ids_than_a_run_can_carry_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        encoded(*[sample("a", "b")] * 5000, max_length=131_072)
    assert caught.value.code == "data_too_large"


def test_ids_above_the_models_vocabulary_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        ChatEncoder(TOKENIZER, shape(vocab_size=300)).encode([sample("What is a GPU?", "A processor.")], 64)
    assert caught.value.code == "tokenizer_invalid"


def test_nearly_all_of_the_corpus_fits_the_presets_length() -> None:
    tokens = ChatEncoder(TOKENIZER, shape()).encode(read_data(data_path("sample_corpus.jsonl")).samples, 64)
    assert (tokens.dropped, tokens.truncated) == (0, 0)


def plain_tokenizer(path: Path) -> Path:
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(path))
    return path


def test_a_tokenizer_without_chatml_ends_a_turn_with_the_models_eos(tmp_path: Path) -> None:
    path = plain_tokenizer(tmp_path / "tokenizer.json")
    tokens = ChatEncoder(path, shape(eos_token_id=300, pad_token_id=None)).encode([sample("a", "b")], 64)
    learned = tokens.labels[0][tokens.labels[0] != IGNORED]
    assert learned.tolist() == [Tokenizer.from_file(str(path)).encode("b").ids[0], 300]
    assert tokens.input_ids[0, -1] == 300


def test_a_model_without_any_end_mark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        ChatEncoder(plain_tokenizer(tmp_path / "tokenizer.json"), shape(eos_token_id=None))
    assert caught.value.code == "tokenizer_invalid"


def test_a_missing_or_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"version": "1.0"}')
    for path, code in ((tmp_path / "absent.json", "model_file_missing"), (broken, "tokenizer_invalid")):
        with pytest.raises(DataError) as caught:
            ChatEncoder(path, shape())
        assert caught.value.code == code


def stand_in_of(*samples: Sample, seed: int = 7) -> tuple[Tokens, Tokens]:
    encoder = ChatEncoder(TOKENIZER, shape())
    real = encoder.encode(samples, 64)
    return real, stand_in(real, encoder.plain_ids(), seed)


def test_a_stand_in_has_the_shape_of_the_real_samples() -> None:
    real, made = stand_in_of(*read_data(data_path("sample_corpus.jsonl")).samples[:100])
    assert (made.lengths == real.lengths).all()
    assert ((made.labels == IGNORED) == (real.labels == IGNORED)).all()
    learned = made.labels != IGNORED
    assert (made.labels[learned] == made.input_ids[learned]).all()
    assert (made.input_ids[real.marks] == real.input_ids[real.marks]).all()
    assert made.input_ids.dtype == made.labels.dtype == np.dtype(np.int32)


def test_a_stand_in_depends_on_shape_and_seed_alone() -> None:
    plain = ChatEncoder(TOKENIZER, shape()).plain_ids()
    real, made = stand_in_of(sample("What is a GPU?", "A processor."))
    other = stand_in(real, plain, seed=8)
    assert (other.input_ids != real.input_ids).any()
    assert (stand_in(other, plain, seed=7).input_ids == made.input_ids).all()
    assert (other.input_ids != made.input_ids).any()


def test_a_stand_in_has_control_tokens_at_marks_and_padding_only() -> None:
    real, made = stand_in_of(*read_data(data_path("sample_corpus.jsonl")).samples[:100])
    drawn = (np.arange(64) < real.lengths[:, None]) & ~real.marks
    assert not np.isin(made.input_ids[drawn], (PAD, OPEN, CLOSE)).any()
    assert (made.input_ids[drawn] == real.input_ids[drawn]).mean() < 0.01
