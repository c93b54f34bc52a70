"""The experiments: one file per question, each says which runs answer it."""
