"""Calls as a shell takes them, and performed: with fake programs on PATH."""

import shlex

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.calls import Call, perform, show
from tests.launch.fakes import Fakes

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20)
FAKE = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    found = Fakes(tmp_path / "programs")
    monkeypatch.setenv("PATH", found.environment["PATH"])
    return found


@FAKE
@given(st.lists(TEXT, max_size=4), st.lists(st.one_of(TEXT, st.sampled_from(["END", "END_", "EOF", "$(date)"])),
                                            max_size=4))
def test_what_is_shown_does_in_a_shell_what_is_performed(tmp_path, arguments, lines):
    fakes = Fakes(tmp_path / "programs")
    fakes.add("fake", reads=True)
    stdin = "".join(line.replace("\n", "") + "\n" for line in lines)
    before = len(fakes.calls())
    done = fakes.bash(show([Call(("fake", *arguments), stdin)]))
    assert done.returncode == 0, done.stderr
    assert fakes.calls()[before:] == [["fake", arguments, stdin]]


def test_text_for_a_program_ends_with_a_newline():
    with pytest.raises(ValueError, match="stdin of cat must end with a newline"):
        Call(("cat",), "a")


def run(calls, capfd, **options):
    status = perform(calls, **{"yes": True, "dry_run": False, "what": "Starts two things.", **options})
    return (status, *capfd.readouterr())


CALLS = [Call(("first", "a b"), "text\n"), Call(("second",))]


def test_calls_are_performed_in_order(fakes, capfd):
    fakes.add("first", reads=True)
    fakes.add("second")
    status, out, err = run(CALLS, capfd)
    assert (status, out, err) == (0, "", "Starts two things.\n")
    assert fakes.calls() == [["first", ["a b"], "text\n"], ["second", [], ""]]


def test_without_yes_the_plan_is_told_and_nothing_runs(fakes, capfd):
    fakes.add("first")
    fakes.add("second")
    status, out, err = run(CALLS, capfd, yes=False)
    assert status == 1 and not out and fakes.calls() == []
    assert "Starts two things." in err and "--yes" in err and "--dry_run" in err


@pytest.mark.parametrize("yes", [False, True])
def test_a_dry_run_shows_the_calls_and_needs_no_program(yes, capfd):
    status, out, err = run(CALLS, capfd, yes=yes, dry_run=True)
    assert (status, out) == (0, "first 'a b' <<'END'\ntext\nEND\nsecond\n")


def test_a_program_that_is_missing_is_told_before_anything_runs(fakes, capfd):
    fakes.add("first")
    status, _, err = run(CALLS, capfd)
    assert status == 1 and "the program second was not found; nothing was started" in err and fakes.calls() == []


def test_the_first_failure_ends_it_and_what_was_done_is_told(fakes, capfd):
    fakes.add("first", [0, 3])
    status, _, err = run([CALLS[0]] * 4, capfd)
    assert status == 1 and len(fakes.calls()) == 2
    assert "call 2 of 4 ended with status 3: " + shlex.join(CALLS[0].argv) in err
    assert "The 1 before it succeeded and stay; the 2 after it were not tried." in err
    fakes.add("second", [1])
    assert "Nothing was started." in run([CALLS[1]], capfd)[2]
