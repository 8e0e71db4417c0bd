"""Compare optimizers on equal terms: problems x optimizers x seeds -> records -> statistics -> report.

    problems.py    what is trained, and how it is scored
    optimizers.py  what is compared, with each one's own defaults
    engine.py      equal tuning budgets, then fresh seeds; parallel; goes on where it stopped
    records.py     append-only JSON lines with provenance
    statistics.py  pure functions of scores
    summary.py     records -> one row per problem and optimizer
    figures.py     summary -> pictures
    report.py      summary and pictures -> one HTML file, or a table in the terminal

Nothing in here knows which optimizer is ours.
"""
