"""Models that can be downloaded, with their licences and checksums."""
