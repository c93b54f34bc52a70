"""The experiments of `nightjar simulate`: one file per question, each says which runs answer it; `catalogue` has all of them."""
