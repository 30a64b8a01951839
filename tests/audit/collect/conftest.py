import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., None]:
    """Writes a file below tmp_path: text as it is, anything else as JSON, and with `lines` a line each."""

    def put(name: str, content: object, lines: bool = False) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if lines:
            assert isinstance(content, list)
            content = "".join(json.dumps(record) + "\n" for record in content)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

    return put
