"""Studies of several runs, reports of their results, benchmarks, and what was measured."""
