"""Byte tokenizer and the registry of tokenizers."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.config import DataConfig
from mtp_jax.data import ByteTokenizer, build_tokenizer, register_tokenizer
from mtp_jax.data import tokenizer as tokenizer_module


def test_ids_are_bytes_then_specials():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert tokenizer.encode(b"\xff").tolist() == [255]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (256, 257, 258, 259)


@given(st.text())
def test_decode_inverts_encode(text):
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text


def test_decode_drops_specials_and_replaces_broken_utf8():
    assert ByteTokenizer().decode([256, 104, 105, 257, 258, 300]) == "hi"
    assert ByteTokenizer().decode(np.array([97, 0xC3], np.int32)) == "a\ufffd"
    assert ByteTokenizer().decode([]) == ""


def test_hash_is_pinned():
    # it is part of every corpus hash: a change would refuse old workdirs
    assert ByteTokenizer().hash == "9be0fbb27e661ea85e9d46198ae299902dee4271f02b3fa9aaf3b21a931b7aee"


def test_unknown_tokenizer_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"data\.tokenizer='byte'.*Did you mean \"bytes\""):
        build_tokenizer(DataConfig(tokenizer="byte"))


def test_a_registered_tokenizer_is_found(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "TOKENIZERS", dict(tokenizer_module.TOKENIZERS))
    mine = ByteTokenizer()
    register_tokenizer("mine")(lambda config: mine)
    assert build_tokenizer(dataclasses.replace(DataConfig(), tokenizer="mine")) is mine
