"""Several processes of torch.distributed on this machine."""

import multiprocessing
from collections.abc import Callable

import torch.multiprocessing


def run_ranks(function: Callable[..., None], *arguments: object, count: int) -> None:
    """Call function(rank, *arguments) in `count` processes; raises what one of them raises."""
    multiprocessing.set_forkserver_preload(
        ["torch.distributed.fsdp", "sharded_ranks", "step_ranks", "probe_ranks"]
    )  # imports once
    torch.multiprocessing.start_processes(
        function, arguments, nprocs=count, start_method="forkserver"
    )
