"""Results that are kept: summaries of whole runs under docs/results, and the page made from them.

kept        from a run's folder to docs/results/BENCH.json, and back
page        docs/results/README.md
paper       docs/results/paper.md, from the rows of the paper's comparison; paper_page.md is the text around them
__main__    `python -m tests.benchmarks.results keep FOLDER`, `keep-paper FOLDER...`, and `page` and `paper` for `make docs`
"""
