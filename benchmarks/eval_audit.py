"""How long the audit of an archive takes: python benchmarks/eval_audit.py   (two cores, no GPU, a minute)

Makes 147 files of 200 records, 11.6 kB each, laid out and worded like the published archives (21 runs, nested
and flat, quotes in folder names, an 8-shot prompt twice in each record), and times whole processes, start
included, files in the page cache. Beside them the floor: json.loads of every line and three counts. Writes
benchmarks/results/eval_audit_DATE.md. --keep FOLDER makes the files there and leaves them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNS, RECORDS, REPEATS = 21, 200, 7
LABELS = ("0", "250", "500", "750", "1000", "1250", "final")
WORDS = """each of the apples costs dollars and then Maria buys more – twice as many — in total"""
FLOOR = """
import json, sys
from pathlib import Path
for path in sorted(Path(sys.argv[1]).rglob("eval_samples_step_*.jsonl")):
    total = invalid = right = 0
    with open(path, encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            answer = record["bridged_extracted"]
            total += 1
            invalid += answer in (None, "", "[invalid]")
            right += answer == record["gold_extracted"]
    print(f"{path} -> total={total} invalid={invalid} gold_match={right}")
"""
# Linux hands a parent's peak down to what it starts, so a small process starts the command
RUNNER = """
import os, sys, time
began = time.perf_counter()
actions = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, used = os.wait4(os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=actions), 0)
if status:
    sys.exit(f"{sys.argv[1:]} ended with {os.waitstatus_to_exitcode(status)}")
print([time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss])
"""


def prose(random_: random.Random, characters: int) -> str:
    """Sentences of about so many characters."""
    text = ""
    while len(text) < characters:
        text += " ".join(random_.choices(WORDS.split(), k=12)) + f" {random_.randrange(100)}.\n"
    return text


def record(random_: random.Random, prompt: str, label: str, index: int) -> dict[str, str | int]:
    """One record with the published eleven keys, about 11.6 kB of JSON."""
    question, gold = f"{prompt}Q: {prose(random_, 250)}\nA: think it through.\n\nAnswer:", str(7 * index)
    made: dict[str, str | int] = {
        "eval_step": label,
        "index": index,
        "question": question,
        "gold_full_text": f"{question} {prose(random_, 280)}#### {gold}",
        "gold_extracted": gold,
    }
    for model, accuracy in (("source", 0.54), ("target", 0.77), ("bridged", 0.5)):
        answer = gold if random_.random() < accuracy else str(random_.randrange(9999))
        is_valid = random_.random() < 0.83
        made[f"{model}_full"] = prose(random_, 420) + (f"#### {answer}\nQ: another" if is_valid else "")
        made[f"{model}_extracted"] = answer if is_valid else "[invalid]"
    return made


def make(folder: Path) -> None:
    """Write the archive."""
    random_ = random.Random(1234)
    prompt = "Answer each question step by step and end with '#### <number>'.\n\n" + prose(random_, 4200)
    for run in range(RUNS):
        name = folder / (
            f'phase1_"20251116_{run:06d}"/phase1_all_fix' if run % 3 else f"flat_20251121_{run:06d}"
        )
        name.mkdir(parents=True)
        for label in LABELS:
            lines = [
                json.dumps(record(random_, prompt, label, i), ensure_ascii=False) + "\n"
                for i in range(RECORDS)
            ]
            (name / f"eval_samples_step_{label}.jsonl").write_text("".join(lines), encoding="utf-8")


def measure(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and the peak MiB of the largest process of one whole command."""
    done = subprocess.run([sys.executable, "-IS", "-c", RUNNER, *command], stdout=subprocess.PIPE, check=True)
    wall, cpu, kilobytes = json.loads(done.stdout)
    return wall, cpu, kilobytes / 1024


def table(archive: Path) -> str:
    """Median and range of every command, taken in turn so that other work on the machine meets them all."""
    script = str(ROOT / "scripts" / "summarize_eval_jsonl.py")
    folder = str(archive)
    commands = {
        "json.loads and three counts, one process": [sys.executable, "-c", FLOOR, folder],
        "`summarize_eval_jsonl`": [sys.executable, script, folder],
        "`summarize_eval_jsonl --json`": [sys.executable, script, "--json", folder],
        "`summarize_eval_jsonl`, held to one core": ["taskset", "-c", "0", sys.executable, script, folder],
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(REPEATS):
        for name, command in commands.items():
            found[name].append(measure(command))
    lines = ["| whole process | wall s | CPU s | peak MiB of a process |", "| --- | --- | --- | --- |"]
    for name, rows in found.items():
        wall, cpu, memory = zip(*rows, strict=True)
        lines.append(f"| {name} | {spread(wall)} | {spread(cpu)} | {max(memory):.0f} |")
    return "\n".join(lines)


def spread(values: tuple[float, ...]) -> str:
    """Median with the least and the largest."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    """Make the files, time the commands, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make the files here, or use those there")
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as temporary:
        archive = keep or Path(temporary)
        if not list(archive.glob("*/")):
            make(archive)
        files = list(archive.rglob("*.jsonl"))
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        rows = table(archive)
    today = date.today().isoformat()
    text = (
        f"# Measured on {today}: the audit of evaluation files\n\n`python benchmarks/eval_audit.py`: "
        f"{len(files)} files, {len(files) * RECORDS:,} records, {megabytes:.0f} MB, in the page cache; "
        f"{os.cpu_count()} cores of {processor()}, other\nwork on them, Python {sys.version.split()[0]}. "
        f"Median of {REPEATS} [least, largest], start included; each command in turn.\n\n{rows}\n"
    )
    (ROOT / "benchmarks" / "results" / f"eval_audit_{today}.md").write_text(text, encoding="utf-8")
    print(text)


def processor() -> str:
    """What Linux calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "a CPU")


if __name__ == "__main__":
    main()
