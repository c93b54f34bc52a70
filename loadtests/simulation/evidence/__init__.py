"""From raw rows of simulated runs to bars, tables and one page."""
