"""Operations for which the host would wait for a device, counted without one."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Counts the operations for which the host would wait for a device."""

    def __init__(self):
        super().__init__()
        self.counts, self.all = Counter(), 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        name, self.all = str(function), self.all + 1
        moves = name.startswith("aten._to_copy") and options.get("device") is not None
        moves |= name.startswith("aten.copy_") and arguments[0].device != arguments[1].device
        if name.startswith(("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero")) or (
            moves and not options.get("non_blocking") and True not in arguments[2:]
        ):
            self.counts[name] += 1
        return function(*arguments, **options)
