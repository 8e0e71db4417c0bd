"""What a run folder holds: records, their provenance, and ways to merge and export them."""
