"""Measurements of the block and the model, importable as ``intermoe.benchmarks``.

``pytest benchmarks/`` and ``intermoe bench`` run the same cases: one file ``bench_<step>.py`` per step lists them, from
what ``forms``, ``models`` and ``grid`` offer. In ``harness``, ``case`` checks and measures one, ``timing`` holds the
clocks, ``report`` what is written down.
"""
