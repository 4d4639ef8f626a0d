"""Shared infrastructure of all programs: settings, database, jobs, object stores, images, Label Studio, web apps."""
