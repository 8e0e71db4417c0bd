"""What a run folder holds: records, their provenance, and how folders are merged."""
