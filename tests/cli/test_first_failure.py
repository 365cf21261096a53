# SPDX-License-Identifier: Apache-2.0
"""What ended a run is said and gives the code, though cleaning up after it fails as well."""

import pytest

from scm_lightning.callbacks.stop_signals import Stopped
from scm_lightning.cli import main
from scm_lightning.cli.failures import first_failure


def _interrupt(error, explained):
    """By its name Lightning's, which calls what cleans up while it handles an error."""
    if explained:
        raise ValueError("explains it") from error
    raise RuntimeError("of the clean-up")


def run(error, explained=False):
    try:
        raise error
    except BaseException as caught:
        _interrupt(caught, explained)


def raised(*args):
    with pytest.raises((ValueError, RuntimeError)) as caught:
        run(*args)
    return first_failure(caught.value)


def test_what_came_first_counts():
    assert isinstance(raised(KeyError("the cause")), KeyError)
    assert str(raised(KeyError("the cause"), True)) == "explains it"
    assert raised(Stopped(143)).code == raised(Stopped(143), True).code == 143


def test_an_error_within_the_handling_of_another_is_none_of_a_clean_up():
    def parse():
        try:
            {}["none"]
        except KeyError:
            int("none")

    with pytest.raises(ValueError, match="invalid literal") as caught:
        parse()
    assert first_failure(caught.value) is caught.value


def test_a_stop_keeps_its_code_and_the_clean_up_is_said(monkeypatch, capsys):
    monkeypatch.setitem(main.__globals__, "_run", lambda words: run(Stopped(75)))
    with pytest.raises(SystemExit) as stopped:
        main(["test"])
    assert stopped.value.code == 75
    assert capsys.readouterr().err == "scm: cleaning up failed as well: of the clean-up\n"
