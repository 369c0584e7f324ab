"""Measurements of the block and the model, importable as ``intermoe.benchmarks``.

``pytest benchmarks/`` and ``intermoe bench`` run the same cases: one file ``bench_<step>.py`` per step lists them,
``case.py`` checks and measures one, ``measure.py`` holds the clocks, ``results.py`` what is written down.
"""
