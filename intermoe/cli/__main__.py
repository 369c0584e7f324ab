"""``python -m intermoe.cli``, for launchers."""

from intermoe.cli import main

main()
