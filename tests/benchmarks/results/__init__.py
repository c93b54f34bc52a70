"""Results that are kept: summaries of whole runs under docs/results, and the page made from them.

kept        from a run's folder to docs/results/BENCH.json, and back
page        docs/results/README.md
__main__    `python -m tests.benchmarks.results keep FOLDER`, and `page` for `make docs`
"""
