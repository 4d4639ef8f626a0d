"""Web service of quality control."""
