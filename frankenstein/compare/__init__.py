"""Compare optimizers on equal terms: problems x optimizers x seeds -> records -> statistics -> report.

    problems/      what is trained, and how it is scored
    optimizers.py  what is compared, with each one's own defaults
    cells.py       one run, turned into one record
    engine.py      equal tuning budgets, then fresh seeds; parallel; goes on where it stopped
    records.py     append-only JSON lines; provenance.py is what each says of its origin
    statistics.py  pure functions of scores
    summary.py     records -> one row per problem and optimizer
    tables.py      summary -> words and numbers
    figures.py     summary -> pictures
    report.py      all of it in one HTML file; terminal.py: progress, and tables in the terminal

Nothing in here knows which optimizer is ours.
"""
