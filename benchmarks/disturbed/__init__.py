"""Commands that are disturbed, and what came of them; `benchmarks/faults.py` tells the score."""
