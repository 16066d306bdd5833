"""Names of two tokens: found in stories, drawn for a tokenizer, put in their place; and made stories."""

import json
import random

import numpy as np
import pytest

from mtp_jax.config import DataConfig
from mtp_jax.data import open_corpus
from mtp_jax.data.bpe import train_bpe
from mtp_jax.data.tasks import names, names_made
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.data.tokenizer_files import HuggingFaceTokenizer
from tests.training.small_runs import ROOT

STORY = ("Once the king saw Hilda, and Hilda's brother Olaf. \"Olaf,\" said Hilda, \"the King is here.\" But Olaf saw "
         "King Hakon. Then Olaf told the King of Hilda. Then the Fox came. Then he left. Then May came, and in May "
         "they saw May.")
TOKENIZERS = ("bytes", "made", "bpe")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    for path in sorted((ROOT / "docs").glob("*.md")):
        (folder / path.name).write_bytes(path.read_bytes())
    trained = train_bpe(DataConfig(source="files", path=str(folder)), vocab_size=400)
    return {"bytes": ByteTokenizer(), "made": names_made.MadeStoriesTokenizer(),
            "bpe": HuggingFaceTokenizer(trained.data)}


def test_names_are_words_that_recur_inside_sentences():
    assert names.find_names(STORY) == ["Hilda", "Olaf"]  # no title, no month, none that comes once or begins sentences


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_name_is_two_tokens_wherever_it_stands(tokenizers, kind):
    tokenizer = tokenizers[kind]
    for name in random.Random(0).sample(names.two_token_names(tokenizer, held_out=True), 20):
        for before in ("", " ", '"', "(", "\n"):
            ids = tokenizer.encode(before + name.text)
            prefix = tokenizer.encode(before)
            assert tokenizer.decode(ids[-2:]).strip() == name.text
            assert len(ids) - len(prefix) in ((2,) if before != " " else (1, 2)), (name, before, ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_training_and_evaluation_share_no_name(tokenizers, kind):
    training, held_out = ({name.text for name in names.two_token_names(tokenizers[kind], held_out=held)}
                          for held in (False, True))
    assert training and held_out and not training & held_out
    assert 0.1 < len(held_out) / len(training | held_out) < 0.3


def test_drawn_names_differ_in_their_first_tokens(tokenizers):
    pool = names.two_token_names(tokenizers["bytes"], held_out=True)
    drawn = names.draw_names(pool, 20, random.Random(1))
    assert len({name.first for name in drawn}) == 20
    more = names.draw_names(pool, 40, random.Random(1))  # more than there are letters
    firsts = len({name.first for name in pool})
    assert len(set(more)) == 40 and len({name.first for name in more[:firsts]}) == firsts < 40


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_mentions_are_where_names_end(tokenizers, kind):
    tokenizer = tokenizers[kind]
    text, new = names.rename(STORY, names.two_token_names(tokenizer, held_out=True), random.Random(3))
    assert "Hilda" not in text and "Olaf" not in text and len(new) == 2
    found = names.find_mentions(text, new, tokenizer)
    assert np.array_equal(found.ids, tokenizer.encode(text))
    hilda, olaf = new
    assert found.names == (hilda, hilda, olaf, olaf, hilda, olaf, olaf, hilda)
    for end, name in zip(found.ends, found.names):
        assert tokenizer.decode(found.ids[end - 1:end + 1]).strip() == name
        assert tokenizer.decode(found.ids[:end + 1]).endswith(name)


def test_a_tokenizer_that_joins_words_is_refused():
    class Joining(ByteTokenizer):
        def encode(self, text):
            return super().encode(text)[::-1]  # a text's ids are not those of its parts

    with pytest.raises(ValueError, match="byte-level BPE"):
        names.find_mentions("Ab went. So Ab came.", ["Ab"], Joining())


def corpus(tmp_path, options):
    for split in ("train", "held"):
        lines = [json.dumps({"text": f"{number} {split} {STORY}"}) for number in range(8)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    config = DataConfig(source="named_stories", path=str(tmp_path / "train.jsonl"), options=options,
                        validation_path=str(tmp_path / "held.jsonl"), batch_size=2, seq_len=64)
    opened = open_corpus(config)
    rows = opened.parts["named_stories"].rows["train"]
    return opened, ByteTokenizer().decode(np.concatenate([rows[i]["tokens"] for i in range(len(rows))]))


def test_a_share_of_the_stories_is_renamed_and_copies_differ(tmp_path):
    opened, text = corpus(tmp_path, "copies=3")
    assert opened.num_documents == 48 and "Hilda" not in text and text.count("train") == 24
    drawn = {part.split(",")[0] for part in text.split("Once the king saw ")[1:]}
    assert len(drawn) > 12  # nearly each copy has its own
    assert corpus(tmp_path, "copies=3")[1] == text
    assert corpus(tmp_path, "copies=3,seed=1")[1] != text
    plain = corpus(tmp_path, "share=0")[1]
    assert plain.count("Hilda") == 32
    assert 0 < corpus(tmp_path, "share=0.5,copies=4")[1].count("Hilda") < 128


@pytest.mark.parametrize("source, options, said", [
    ("named_stories", "share=2", "share=2.0 must lie in"), ("named_stories", "copies=0", "copies=0"),
    ("made_stories", "characters=99", "characters=99"), ("made_stories", "storys=9", "stories"),
    ("made_stories", "stories=1", "stories=1"), ("made_stories", f"seed={2**64}", "seed=18446744073709551616 must")])
def test_options_that_make_no_sense_are_told(tmp_path, source, options, said):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    path = str(tmp_path / "a.jsonl") if source == "named_stories" else ""
    with pytest.raises(ValueError, match=said):
        open_corpus(DataConfig(source=source, path=path, options=options, tokenizer="bytes"))


def test_made_stories_depend_on_their_options_alone():
    options = names_made.MadeStoriesOptions(stories=6000, share=0.3)
    stories = [story.text for story in names_made.make_stories(options, 0, 4100)]
    assert len(set(stories)) > 4000
    assert stories[4096:] == [story.text for story in names_made.make_stories(options, 4096, 4100)]
    other = names_made.MadeStoriesOptions(stories=6000, share=0.3, seed=1)
    assert stories[0] != next(names_made.make_stories(other, 0, 1)).text


def test_the_share_of_made_stories_with_names_of_their_own():
    for share in (0.0, 0.3, 1.0):
        made = list(names_made.make_stories(names_made.MadeStoriesOptions(share=share), 0, 1000))
        own = [story for story in made if not set(story.names) & set(names_made.FAMILIAR)]
        assert abs(len(own) / 1000 - share) < 0.05
        assert all(len({name.first for name in story.names}) == 3 for story in made)
    assert not {name.text for story in made for name in story.names} & {
        name.text for name in names_made.own_names(held_out=True)}


def test_made_stories_have_words_that_their_tokenizer_knows(tokenizers):
    tokenizer = tokenizers["made"]
    for story in names_made.make_stories(names_made.MadeStoriesOptions(), 0, 200, held_out=True):
        ids = tokenizer.encode(story.text)
        assert 3 not in ids and tokenizer.decode(ids) == story.text
        found = names.find_mentions(story.text, [name.text for name in story.names], tokenizer)
        assert all(tokenizer.decode(found.ids[end - 1:end + 1]) == name for end, name in zip(found.ends, found.names))
        assert len(found.ends) >= 8
    assert 3 in tokenizer.encode("Xylophone")
