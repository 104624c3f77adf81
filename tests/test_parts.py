from pathlib import Path

import pytest

from tests.support import parts


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only folder of PATH, with nothing in it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("ANOMALYD_TEST_ALERTMANAGER", raising=False)
    monkeypatch.setattr(parts, "LACKING", {})
    return tmp_path


def _program(path: Path) -> str:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_a_part_is_found_on_path_under_any_of_its_names_and_the_variable_goes_first(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    debian = _program(bare / "prometheus-alertmanager")
    assert parts.part("alertmanager") == debian
    own = _program(bare / "mine")
    monkeypatch.setenv("ANOMALYD_TEST_ALERTMANAGER", own)
    assert parts.part("alertmanager") == own


def test_a_missing_part_skips_and_is_remembered_for_the_last_line(bare: Path) -> None:
    for _ in range(2):
        with pytest.raises(
            pytest.skip.Exception, match="alertmanager is not there: install it, or say where it is in ANOMALYD_TEST_ALERTMANAGER"
        ):
            parts.part("alertmanager")
    assert parts.LACKING == {"alertmanager": 2}


def test_in_ci_a_missing_part_fails(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="alertmanager is not there"):
        parts.part("alertmanager")


def test_a_variable_that_names_no_program_is_a_mistake_and_never_a_skip(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALYD_TEST_ALERTMANAGER", "/nowhere/alertmanager")
    with pytest.raises(pytest.fail.Exception, match="/nowhere/alertmanager is no program"):
        parts.part("alertmanager")
