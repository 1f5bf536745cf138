"""One process or many: started by ``torchrun``, each rank takes a share of every batch (DistributedDataParallel)."""

import atexit
import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robustgen.locks import alone

__all__ = ["World", "current_world", "join", "unwrap"]


def unwrap(model: nn.Module) -> nn.Module:
    """The network itself, where ``model`` may be wrapped in DistributedDataParallel.

    >>> unwrap(nn.Identity())
    Identity()
    """
    return model.module if isinstance(model, DistributedDataParallel) else model


@dataclass(frozen=True)
class World:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1

    def share(self, indices: Tensor) -> Tensor:
        """This rank's part of a batch; the sizes differ by at most one."""
        return indices.tensor_split(self.size)[self.rank]

    def reduce(self, tensor: Tensor, lowest: bool = False) -> Tensor:
        """The sum (or the lowest) of ``tensor`` over all ranks, on each of them."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MIN if lowest else dist.ReduceOp.SUM)
        return tensor

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the values of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def exists(self, path: Path) -> bool:
        """Whether ``path`` is there, before any rank goes on and may write it."""
        found = path.exists()
        self.wait()
        return found

    @contextmanager
    def alone(self, directory: Path | None, device: torch.device) -> Iterator[None]:
        """Inside, rank 0 holds ``directory``, if there is one, for all ranks; where it cannot, all of them raise.

        Raises:
            BlockingIOError: another process is writing there.
        """
        if directory is None:
            yield
            return
        with ExitStack() as stack:
            refused = None
            if self.rank == 0:
                try:
                    stack.enter_context(alone(directory, wait=False))
                except OSError as error:
                    refused = error
            n = self.reduce(torch.tensor(0 if refused is None else 1, device=device))
            if refused is not None:
                raise refused
            if int(n):
                raise BlockingIOError(f"{directory}: refused to the first process")
            yield

    def union(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of all ranks, on each of them; names that several ranks use hold the same."""
        if self.size == 1:
            return tensors
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        packed = {name: t.contiguous() for name, t in tensors.items()}
        own = torch.frombuffer(bytearray(safetensors.torch.save(packed)), dtype=torch.uint8).to(device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(own)], device=device))
        longest = int(max(sizes))
        parts = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in range(self.size)]
        dist.all_gather(parts, torch.nn.functional.pad(own, (0, longest - len(own))))
        found: dict[str, Tensor] = {}
        for part, size in zip(parts, sizes, strict=True):
            found |= safetensors.torch.load(part[: int(size)].cpu().numpy().tobytes())
        return found

    def wrap(self, model: nn.Module, device: torch.device, unused: bool = False) -> nn.Module:
        """``model`` with gradients averaged over all ranks; ``unused``: a step may leave some parameters out."""
        if self.size == 1:
            return model
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=unused)


def current_world() -> World:
    """The processes that have been joined; one, where none have."""
    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()


def join(device: torch.device | str | None, model: nn.Module) -> tuple[World, torch.device]:
    """Join the other processes, if there are any, and say which device this one trains on.

    Under ``torchrun`` (RANK and WORLD_SIZE are set) the process group is initialised here, NCCL on GPUs and gloo
    otherwise. The device defaults to the GPU of LOCAL_RANK with NCCL, and to where the model already is without.
    """
    wanted = None if device is None else torch.device(device)
    if not dist.is_initialized() and "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        on_gpu = torch.cuda.is_available() and (wanted is None or wanted.type == "cuda")
        # DistributedDataParallel imports this module, which keeps the group of that moment as default arguments. Its
        # threads would outlive it then, and one that needs the interpreter while it shuts down aborts the process.
        importlib.import_module("torch.distributed.nn")
        dist.init_process_group("nccl" if on_gpu else "gloo")
        atexit.register(_leave)
    world = current_world()
    if world.size > 1 and dist.get_backend() == "nccl" and (wanted is None or wanted.index is None):
        wanted = torch.device("cuda", int(os.environ.get("LOCAL_RANK", world.rank % torch.cuda.device_count())))
    if wanted is None:
        wanted = next((p.device for p in model.parameters()), torch.device("cpu"))
    return world, wanted


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
