"""A Hydra application: python hydra_app.py --multirun scene=SCENE cell=a,b"""

from __future__ import annotations

from pathlib import Path

import hydra
from cell import count
from omegaconf import DictConfig


@hydra.main(version_base=None, config_path="hydra_conf", config_name="config")
def main(config: DictConfig) -> None:
    """Execute one cell."""
    count(Path(config.scene), config.cell)


if __name__ == "__main__":
    main()
