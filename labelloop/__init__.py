"""The annotation loop around stock Label Studio."""

VERSION = "0.1.0"
