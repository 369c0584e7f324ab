"""What checks, times and writes down the cases of ``bench_*.py``."""
