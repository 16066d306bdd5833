"""Settings of synthetic sources: read from a text, written back, and what is told of a wrong one."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.config import DataConfig
from mtp_jax.data.sources.base import find
from mtp_jax.data.tasks.options import read_options, write_options


@dataclasses.dataclass(frozen=True)
class Settings:
    size: int = 3
    share: float = 0.5
    name: str = "a"
    loud: bool = False

    def validate(self):
        if self.size < 1:
            raise ValueError(f"size={self.size} must be at least 1.")


def test_what_is_left_out_is_as_by_default():
    assert read_options(Settings, "", "made") == Settings()
    assert read_options(Settings, " size = 4 ,loud=true,", "made") == Settings(size=4, loud=True)


@given(st.builds(Settings, size=st.integers(1), share=st.floats(allow_nan=False), loud=st.booleans(),
                 name=st.text("abc_-.", min_size=1)))
def test_what_is_written_is_read_back(settings):
    assert read_options(Settings, write_options(settings), "made") == settings


@pytest.mark.parametrize("text, message", [
    ("sise=4", "has no setting 'sise'. Did you mean \"size\""), ("size=4,size=5", "gives size twice"),
    ("size", "not of the form name=value"), ("size=4.5", "size='4.5' must be of type int"),
    ("loud=perhaps", "must be of type bool"), ("size=0", "size=0 must be at least 1")])
def test_wrong_settings(text, message):
    with pytest.raises(ValueError, match=message):
        read_options(Settings, text, "made")


def test_a_source_without_options_refuses_them(tmp_path):
    with pytest.raises(ValueError, match="data.options='size=4' is not read by data.source='stdlib'"):
        find(DataConfig(source="stdlib", options="size=4"))
