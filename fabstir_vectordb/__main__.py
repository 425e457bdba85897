"""``python -m fabstir_vectordb`` and the command ``fabstir-vectordb``."""

from __future__ import annotations

import sys

from fabstir_vectordb.core_dumps import forbid_core_dumps
from fabstir_vectordb.extras import install_command

__all__ = ["main"]


def main() -> None:
    """Starts the command line, or says what it needs."""
    try:
        from fabstir_vectordb.cli import cli
    except ModuleNotFoundError as error:
        if error.name not in ("click", "platformdirs", "tqdm"):
            raise
        print(f"the command line needs {error.name}: {install_command('cli')}", file=sys.stderr)
        raise SystemExit(1) from None
    # Its memory has the phrase, or keys made of it.
    forbid_core_dumps()
    cli()


if __name__ == "__main__":
    main()
