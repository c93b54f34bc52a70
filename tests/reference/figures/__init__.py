"""The figures of README and docs: `make figures` runs what is simulated, keeps its rows beside them, and draws them.

picture        a file of its own: charts with titles and a legend, light and dark
flowchart      boxes and arrows in Mermaid's language, for the site
changing_load  K and throughput while the load changes, in virtual time
demo_run       the same of a recorded demo, on real engines: the README's
__main__       `python -m tests.reference.figures FOLDER`

A figure is a function of its rows alone, and a test draws it again: a figure that no longer fits its rows fails there.
"""
