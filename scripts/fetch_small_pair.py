"""Fetch two small pretrained models into models/, 1 min and 0.6 GB: python scripts/fetch_small_pair.py"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from latentbridge.data.small_pair import fetch_pair  # noqa: E402
from latentbridge.errors import RunError  # noqa: E402

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    try:
        for line in fetch_pair(ROOT / "models"):
            print(line, flush=True)
    except RunError as error:
        raise SystemExit(str(error)) from None
