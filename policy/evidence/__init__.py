"""What the counters of many replicas say: step times, acceptance, and goodput by batch size and K, each with its doubt."""
