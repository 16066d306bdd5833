"""Text that is shown as it grows: the same as the whole, never taken back, coloured by head, harmless to a terminal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtp_jax.config import DataConfig
from mtp_jax.data.tokenizer import ByteTokenizer, build_tokenizer
from mtp_jax.decoding import terminal

TEXTS = ["def naïve(x):\n    return x", "Žluťoučký kůň — 日本語 🙂🙃", "a  b   c", "ééé€€€", "é"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Bytes, a byte-level BPE that cuts characters, and a SentencePiece model that falls back to bytes."""
    from sentencepiece import SentencePieceTrainer
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("tokenizers")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS[:1] * 9, vocab_size=270, special_tokens=["<|bos|>", "<|eos|>"], show_progress=False)
    bpe.save(str(folder / "tokenizer.json"))
    SentencePieceTrainer.train(sentence_iterator=iter(["def naive return", "a b c more"] * 20), vocab_size=300,
                               model_prefix=str(folder / "sp"), byte_fallback=True, minloglevel=2,
                               hard_vocab_limit=False)
    return [build_tokenizer(DataConfig(tokenizer=name)) for name in
            ("bytes", str(folder / "tokenizer.json"), str(folder / "sp.model"))]


def streamed(tokenizer, prompt, ids):
    """Returns what a stream gives out after each token, and at the end."""
    stream = terminal.TextStream(tokenizer, prompt)
    shown = [list(stream.push([index], [number])) for number, index in enumerate(ids)]
    return [*shown, list(stream.finish())]


@pytest.mark.parametrize("prompt", ["", "x = ", "日本"])
@pytest.mark.parametrize("number", range(3))
def test_a_stream_of_a_text_is_the_text_and_takes_nothing_back(tokenizers, number, prompt):
    tokenizer = tokenizers[number]
    for text in TEXTS:
        whole = tokenizer.encode(prompt + text).tolist()
        start = len(tokenizer.encode(prompt))
        before = [tokenizer.bos_id, *whole[:start]]
        shown = streamed(tokenizer, before, whole[start:])
        assert "".join(piece for pieces in shown for piece, _ in pieces) == tokenizer.decode(whole).removeprefix(
            tokenizer.decode(whole[:start]))
        assert shown[-1] == []  # a whole text holds nothing back
        assert not any(piece.endswith("\ufffd") for pieces in shown for piece, _ in pieces)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 258), min_size=1, max_size=30), st.integers(0, 29))
def test_any_bytes_give_what_the_whole_decodes_to(ids, cut):
    tokenizer, start = ByteTokenizer(), min(cut, len(ids) - 1)
    shown = streamed(tokenizer, [256], ids[start:])
    assert "".join(piece for pieces in shown for piece, _ in pieces) == tokenizer.decode(ids[start:])


def test_a_character_comes_with_its_last_byte_and_has_that_head():
    stream = terminal.TextStream(ByteTokenizer(), [256])
    assert list(stream.push("a€"[:1].encode() + "€".encode()[:2], [1, 2, 3])) == [("a", 1)]
    assert list(stream.push("€".encode()[2:], [4])) == [("€", 4)]
    assert list(stream.push("€".encode()[:1], [2])) == [] and list(stream.finish()) == [("\ufffd", 2)]
    assert list(stream.finish()) == []


def test_a_space_that_a_tokenizer_drops_at_the_start_of_a_text_stays_within_it(tokenizers):
    tokenizer = tokenizers[2]
    start, words = tokenizer.encode("a").tolist(), tokenizer.encode("a b").tolist()
    new = [tokenizer.eos_id, *words[len(start):]]
    assert tokenizer.decode(new) == "b"
    assert terminal.pieces(tokenizer, start, new, np.ones(len(new), np.int8)) == [(" b", 1)]


def test_neighbours_of_one_head_are_one_piece():
    assert terminal.pieces(ByteTokenizer(), [256], b"abcd", [1, 2, 2, 1]) == [("a", 1), ("bc", 2), ("d", 1)]


def channel(level):
    share = level / 255
    return share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4


def test_colours_can_be_read_on_white_and_on_black():
    levels = (0, 95, 135, 175, 215, 255)
    for number in terminal.PALETTE:
        red, green, blue = (channel(levels[(number - 16) // 6 ** i % 6]) for i in (2, 1, 0))
        luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        assert 1.05 / (luminance + 0.05) >= 3.5 and (luminance + 0.05) / 0.05 >= 4, number


def test_head_1_is_plain_and_every_other_has_its_own_look():
    assert terminal.colour("x", 1) == "x"
    looks = {terminal.colour("x", head) for head in range(1, 16)}
    assert len(looks) == 15
    assert terminal.colour("a\n\nb", 2) == "\x1b[38;5;33ma\x1b[0m\n\n\x1b[38;5;33mb\x1b[0m"
    assert terminal.colour("x", 3) in terminal.legend(3).replace("head 3", "x") and "head 4" not in terminal.legend(3)


def test_a_terminal_is_shown_control_characters_and_does_not_obey_them():
    assert terminal.harmless("a\tb\n\x1b[2Jc\x07\x7f\x9b\ré") == "a\tb\n␛[2Jc␇␡\ufffd␍é"
