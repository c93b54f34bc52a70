"""A simulated engine in nearly all of whose steps prompts are computed: each K is measured there, and the better one is planned.

Prompts of 2,000 to 8,000 tokens, answers of some 25, always as many requests as keep prompts waiting. Engines draft by the K of the
first plan, and no pure decode step comes in which a measurement could begin. Virtual time, one seed.
"""

from __future__ import annotations
