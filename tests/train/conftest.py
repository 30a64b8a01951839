"""The toy workload of these tests; `ranks` is in the conftest above."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The module toy.py: a workload small enough to train in a test."""
    specification = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["toy"] = module  # pydantic looks annotations up there
    specification.loader.exec_module(module)
    return module
