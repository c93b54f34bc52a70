"""How results reach a reader: pages from templates, charts as SVG, the facts of machine and run that stand beside numbers."""
