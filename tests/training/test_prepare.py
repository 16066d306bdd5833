"""What is told of a prompt's end that no document has."""

import dataclasses

import pytest

from mtp_jax.config import Config, DataConfig, ModelConfig, ObjectiveConfig
from mtp_jax.data import open_corpus
from mtp_jax.training.prepare import check_prompt_end


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        (folder / f"{number}.txt").write_text(f"{number}+{number}={2 * number}")
    return DataConfig(source="files", path=str(folder), seq_len=32)


def config(data, token):
    return Config(model=ModelConfig(vocab_size=259), objective=ObjectiveConfig(prompt_end=token), data=data)


@pytest.mark.parametrize("token", [None, ord("=")])
def test_a_prompt_that_ends(data, token):
    check_prompt_end(config(data, token), open_corpus(data))


@pytest.mark.parametrize("token, message", [
    (ord("?"), "objective.prompt_end=63 is in none of the first .* training rows of files"),
    (259, "objective.prompt_end=259 is no id of the vocabulary of 259")])
def test_a_prompt_that_never_ends(data, token, message):
    with pytest.raises(ValueError, match=message):
        check_prompt_end(config(data, token), open_corpus(dataclasses.replace(data)))
