"""Evaluation files in the layout of the published translator."""

from __future__ import annotations

import json
from pathlib import Path

HEADER = "Answer each question step by step and end with '#### <number>'."


def record(index: int, answer: str | None = None, gold: str | None = None, **changes: object) -> dict:
    """One record in the seed's layout; by default a right answer to question `index`."""
    gold = str(index * 7) if gold is None else gold
    answer = gold if answer is None else answer
    question = f"{HEADER}\n\nQ: How many – in all?\nA: 2\n#### 2\n\nQ: question {index}\nA:"
    valid = answer not in ("", "[invalid]")
    return {
        "index": index,
        "question": question,
        "gold_full_text": f"{question} so\n#### {gold}",
        "gold_extracted": gold,
        "source_full": "no idea",
        "source_extracted": "[invalid]",
        "target_full": f"#### {gold}",
        "target_extracted": gold,
        "bridged_full": f"so it is\n#### {answer}" if valid else "so it is",
        "bridged_extracted": answer,
        **changes,
    }


def write(path: Path, records: list[dict], tail: str = "") -> Path:
    """Records of the evaluation that the file's name tells, unless they say otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    step = path.name.removeprefix("eval_samples_step_").removesuffix(".jsonl")
    items = ({"eval_step": step} | item for item in records)
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    path.write_text(lines + tail, encoding="utf-8")
    return path
