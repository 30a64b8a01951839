"""What is bundled with the package, and what a model's name in a config stands for."""

from __future__ import annotations

import re
from pathlib import Path

from latentbridge.errors import ConfigError

ASSETS = Path(__file__).parent / "assets"
_MODELS = ASSETS / "models"
_BUNDLED = "bundled:"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(name: str) -> str:
    """What to load for `bundled:NAME`, a folder, or a hub id such as `meta-llama/Llama-3.1-8B-Instruct`.

    Folders come back absolute, hub ids as they are; anything else is a ConfigError.
    """
    if name.startswith(_BUNDLED):
        folder = _MODELS / name.removeprefix(_BUNDLED)
        if folder.parent != _MODELS or not (folder / "config.json").is_file():
            known = ", ".join(f"{_BUNDLED}{bundled}" for bundled in bundled_models()) or "none"
            raise ConfigError(f"model '{name}' is not bundled; bundled here: {known}")
        return str(folder)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"model '{name}' is a folder without config.json; name the folder of an export")
        return str(path.absolute())
    if not _HUB_ID.fullmatch(name):
        raise ConfigError(
            f"model '{name}' is no folder here; write bundled:NAME, a folder, or a hub id like org/name"
        )
    return name


def bundled_models() -> list[str]:
    """Names that can follow `bundled:`."""
    if not _MODELS.is_dir():
        return []
    return sorted(folder.name for folder in _MODELS.iterdir() if (folder / "config.json").is_file())
