"""``python -m intermoe`` is the command ``intermoe``."""

from intermoe.cli import main

main()
