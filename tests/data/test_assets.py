"""What a model's name in a config stands for."""

from __future__ import annotations

import pytest

from latentbridge.data.assets import bundled_models, resolve_model
from latentbridge.errors import ConfigError


def test_a_folder_becomes_absolute(tmp_path, monkeypatch):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)

    assert resolve_model("export") == str(tmp_path / "export")


def test_a_hub_id_stays_as_it_is():
    assert resolve_model("org/Model-7B.v1") == "org/Model-7B.v1"


def test_bundled_names_resolve_to_folders_of_the_package():
    for name in bundled_models():
        assert resolve_model(f"bundled:{name}").endswith(f"assets/models/{name}")


@pytest.mark.parametrize(
    "name", ["bundled:nothing", "bundled:../gsm8k", "no_such_folder", "a/b/c", "/no/such"]
)
def test_names_that_stand_for_nothing_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match="model '"):
        resolve_model(name)


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"without config\.json"):
        resolve_model(str(tmp_path))
