"""What does ``python -m annbatch`` do? The same as the command ``annbatch``."""

from __future__ import annotations

from annbatch.cli import main

if __name__ == "__main__":
    main(prog_name="annbatch")
