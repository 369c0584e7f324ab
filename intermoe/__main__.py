"""``python -m intermoe`` is the command ``intermoe``."""

from intermoe.cli.__main__ import main

main()
