"""The corpus that all training tests share."""

import pytest

from tests.training.small_runs import write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder of a few files of text."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))
