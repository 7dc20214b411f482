"""Build a native back end, and use it: `python -m vit.native build|predict`."""

import logging
import sys
from dataclasses import dataclass

import tyro

from support.command import dispatch
from support.console import open_console

log = logging.getLogger("vit.native")


@dataclass(frozen=True, kw_only=True)
class Build:
    """Compile a back end with what this machine has; what is missing is named."""

    backend: tyro.conf.Positional[str]
    """cpu: C++ over oneDNN. sycl: the same on what SYCL reaches, such as Intel's GPUs."""
    sanitize: bool = False
    """Stop at errors of memory and undefined behaviour, and say where; several times slower."""

    def __call__(self) -> int:
        """Build it and name the library and the program."""
        open_console(verbose=False)
        from vit.native.build import PROGRAM, build

        library = build(self.backend, sanitize=self.sanitize)
        log.info("library     %s", library)
        log.info("program     %s", library.with_name(PROGRAM))
        return 0


COMMANDS = {"build": Build}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit status."""
    return dispatch("python -m vit.native", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
