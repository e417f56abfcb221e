"""The check of the built pages in a browser: what it does where there is none."""

import shutil
import sys
from pathlib import Path

import pytest

from tools import check_browser


@pytest.mark.parametrize(("ci", "status"), [(None, 0), ("", 0), ("true", 1)])
def test_a_missing_browser_fails_only_in_ci(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    ci: str | None,
    status: int,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["check_browser", str(tmp_path)])
    if ci is None:
        monkeypatch.delenv("CI", raising=False)
    else:
        monkeypatch.setenv("CI", ci)
    assert check_browser.main() == status
    assert "NOT opened" in capsys.readouterr().out
