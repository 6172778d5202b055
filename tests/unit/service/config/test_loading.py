"""What is read where, and the one text of pydantic-settings that is parsed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic_settings import SettingsError

from service.config.loading import config_path, group_in
from service.config.settings import Settings


def test_pydantic_settings_still_names_the_group_of_a_variable_that_is_not_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`group_in` reads it out of the message: there is no other place. When this fails after an
    upgrade, adapt that function."""
    for variable in ("STRATA_AUTH__KEYS", "STRATA_AUTH"):
        with monkeypatch.context() as patched:
            patched.setenv(variable, "[{")
            with pytest.raises(SettingsError) as refused:
                Settings()
        assert group_in(refused.value) == "auth"


def test_the_file_that_is_named_is_read_else_the_variables_else_the_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STRATA_CONFIG", raising=False)
    assert config_path(None) is None
    (tmp_path / "strata.toml").touch()
    assert config_path(None) == Path("strata.toml")
    monkeypatch.setenv("STRATA_CONFIG", "other.toml")
    assert config_path(None) == Path("other.toml")
    assert config_path(Path("given.toml")) == Path("given.toml")
