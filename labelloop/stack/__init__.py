"""The local stack that `labelloop up` runs: stock Label Studio, our programs, and a project to try."""
