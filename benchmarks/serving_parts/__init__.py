"""Parts of ``benchmarks/serving.py``: the workload, the arms, and the report."""
