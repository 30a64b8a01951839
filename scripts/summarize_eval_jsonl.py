"""Audit evaluation files by path, without installing anything: python scripts/summarize_eval_jsonl.py RUN...

Login node or laptop, no GPU; a second for 340 MB on two cores.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from latentbridge.audit.eval_jsonl import main

if __name__ == "__main__":
    raise SystemExit(main())
