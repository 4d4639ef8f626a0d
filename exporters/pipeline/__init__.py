"""One export run, from source to published version."""
