"""Checkpoints that are either complete or not there: folders count once a link points to them.

checkpoints/
  last -> last-250-x1y2/    engine files, state.json: all that a resumed run needs to go on exactly
  best -> best-250-a8b9/    model.safetensors (full weights in the trained dtype), state.json (step, metric,
                            value, sha256)
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from latentbridge.errors import RunError
from latentbridge.nn.exchange import peers_of
from latentbridge.rundir import hash_file, read_json, sync_folder, write_json
from latentbridge.train import distributed, shards
from latentbridge.train.engine import Engine

WEIGHTS = "model.safetensors"
STATE = "state.json"


def save_last(root: Path, engine: Engine, state: dict[str, Any]) -> None:
    """Make `last` this state of the run; all ranks together."""
    folder = _new_folder(root, f"last-{state['step']}-")
    engine.save(folder)
    distributed.barrier()
    if distributed.local_rank() == 0:
        _sync_tree(folder)
    distributed.barrier()
    if distributed.rank() == 0:
        write_json(folder / STATE, state)
        _link(root / "last", folder.name)
    distributed.barrier()


def rewrite_last_state(root: Path, state: dict[str, Any]) -> None:
    """Replace the small part of `last`, such as that its step has been evaluated since (rank 0)."""
    if distributed.rank() == 0:
        write_json(root / "last" / STATE, state)


def read_last(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """The folder that `last` points to and its state, or None where no checkpoint was completed."""
    if not (root / "last").exists():
        return None
    folder = root / os.readlink(root / "last")
    return folder, dict(read_json(folder / STATE))


def write_best(root: Path, weights: dict[str, Tensor], state: dict[str, Any]) -> str:
    """Write `full_weights` into a new folder and return its name; all ranks together.

    It is not `best` yet: first `last` must remember the name, so that the two can never disagree.
    """
    folder = _new_folder(root, f"best-{state['step']}-")
    if distributed.rank() == 0:
        save_file(weights, folder / WEIGHTS)
        write_json(folder / STATE, {**state, "sha256": hash_file(folder / WEIGHTS)})
        _sync_tree(folder)
    distributed.barrier()
    return folder.name


def link_best(root: Path, name: str) -> None:
    """Make the folder that `write_best` returned `best` (rank 0)."""
    if distributed.rank() == 0:
        _link(root / "best", name)


def load_best(root: Path, name: str, module: nn.Module) -> None:
    """Put weights that `write_best` wrote back into `module`; RunError where the file was damaged.

    The optimiser keeps its own copies, so this is for evaluation only. By name, not by link: another
    node may still see the link as it was.
    """
    weights = root / name / WEIGHTS
    if hash_file(weights) != read_json(root / name / STATE)["sha256"]:
        raise RunError(f"{weights}: its SHA-256 is not the one in {STATE}; the file was damaged")
    load_weights(module, weights)


def tidy(root: Path, best: str | None) -> None:
    """Before a run goes on: `best` is what `last` remembers, and what a killed attempt left is gone.

    best: the name that `last` remembers; None also where there is no `last`, and the run starts anew
    """
    if distributed.rank() == 0 and root.exists():
        if best is None:
            (root / "best").unlink(missing_ok=True)
        else:
            _link(root / "best", best)
        linked = {os.readlink(path) for path in root.iterdir() if path.is_symlink()}
        for path in root.iterdir():
            if path.is_dir() and not path.is_symlink() and path.name not in linked:
                shutil.rmtree(path)
    distributed.barrier()


def full_weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU of all parameters and saved buffers, whatever ZeRO did to them; empty off rank 0.

    Experts are all there, however many ranks share them.
    """
    weights = {}
    for name, tensor in named_tensors(module):
        with _whole(tensor):
            whole = shards.gathered(tensor)
            if distributed.rank() == 0:
                weights[name] = whole.detach().to("cpu", copy=True).contiguous()
    return weights


def load_weights(module: nn.Module, path: Path) -> None:
    """Copy the weights of a safetensors file into `module`; RunError where names or shapes differ."""
    with safe_open(path, framework="pt") as file, torch.no_grad():
        tensors = dict(named_tensors(module))
        if wrong := sorted(set(tensors) ^ set(file.keys())):
            raise RunError(
                f"{path}: not the weights of {type(module).__name__}; unmatched: {', '.join(wrong[:5])}"
            )
        for name, tensor in tensors.items():
            with _whole(tensor, write=True):
                source, peers = file.get_tensor(name), peers_of(tensor)
                source = source if peers is None else peers.own(source)
                if tensor.shape != source.shape:
                    raise RunError(
                        f"{path}: {name} is {tuple(source.shape)}, the model's is {tuple(tensor.shape)}; "
                        "the sizes in the config differ from those it was trained with"
                    )
                tensor.copy_(source)


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All that a file of weights holds: parameters, and buffers that are saved."""
    # tied parameters once, under their first name: safetensors refuses shared storage
    yield from module.named_parameters()
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    yield from ((name, t) for name, t in module.state_dict(keep_vars=True).items() if name not in names)


def _whole(tensor: Tensor, write: bool = False) -> AbstractContextManager[None]:
    """While open, a ZeRO-3 parameter holds all of its values; what rank 0 wrote goes to every rank."""
    if not hasattr(tensor, "ds_id"):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[None]
    gathered = deepspeed.zero.GatheredParameters([tensor], modifier_rank=0 if write else None)
    return gathered


def _new_folder(root: Path, prefix: str) -> Path:
    name = ""
    if distributed.rank() == 0:
        root.mkdir(exist_ok=True)
        folder = tempfile.mkdtemp(prefix=prefix, dir=root)
        os.chmod(folder, 0o755)  # mkdtemp makes 0700, which colleagues could not enter
        name = Path(folder).name
    return root / distributed.from_rank_0(name)


def _link(link: Path, folder: str) -> None:
    """Swap the link in one step, then delete the folder it pointed to before."""
    previous = os.readlink(link) if link.is_symlink() else folder
    temporary = link.with_name(f".{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder)
    os.replace(temporary, link)
    sync_folder(link.parent)
    if previous != folder:
        shutil.rmtree(link.parent / previous, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            sync_folder(path)
