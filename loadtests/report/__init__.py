"""How results reach a reader: pages from templates, charts as SVG, the facts of the machine that stand beside numbers."""
