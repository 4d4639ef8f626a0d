"""What quality control writes into Label Studio besides fields of tasks: overlays and review copies."""
