"""Cut enwik8 (as it is, .gz or .zip) into text/enwik8_*.txt.gz: python scripts/cut_enwik8.py FILE"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from latentbridge.data.enwik8 import cut  # noqa: E402
from latentbridge.errors import RunError  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    try:
        print(*cut(parser.parse_args().file, ROOT / "text"), sep="\n")
    except RunError as error:
        raise SystemExit(str(error)) from None
