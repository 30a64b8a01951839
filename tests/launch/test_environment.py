"""What an attempt tells of the machine that it ran on."""

from __future__ import annotations

from importlib import metadata

from latentbridge.launch.environment import gpu_models, versions

CARD = "Model: \t\t {model}\nIRQ:   \t\t 77\nBus Location: \t 0000:{bus}:00.0\n"


def test_cards_are_named_as_the_driver_names_them(tmp_path):
    cards = {"1b": "NVIDIA H100 80GB HBM3", "43": "NVIDIA H200", "5f": "NVIDIA H200"}
    for bus, model in cards.items():
        (tmp_path / f"0000:{bus}:00.0").mkdir()
        (tmp_path / f"0000:{bus}:00.0" / "information").write_text(CARD.format(bus=bus, model=model))

    assert gpu_models(tmp_path) == list(cards.values())


def test_a_machine_without_a_driver_has_no_cards_to_name(tmp_path):
    assert gpu_models(tmp_path / "gpus") == []


def test_what_is_not_installed_has_no_version(monkeypatch):
    def installed(name):
        if name == "deepspeed":
            raise metadata.PackageNotFoundError(name)
        return "1.5"

    monkeypatch.setattr(metadata, "version", installed)

    assert versions()["deepspeed"] is None
    assert versions()["torch"] == "1.5"
