"""Compare optimizers on equal terms: problems x optimizers x trials x seeds -> records -> statistics -> report.

    problems/       what is trained, and how it is scored; training.py is the loop of most of them
    optimizers.py   what an optimizer is; baselines.py: those there are; catalog.py: these and the user's own
    suites.py       named comparisons; comparison.py: budgets, the same for all; tuning.py: which settings a trial takes
    cells.py        one run, turned into one record; live.py: its numbers while it runs
    engine.py       all of them, in parallel; goes on where it stopped; estimate.py: the time left
    executors/      where cells run: this machine, Ray, Slurm
    store/          append-only records with provenance; merge
    statistics/     pure functions of scores
    results/        records -> summaries -> standings -> a verdict in words; export
    report/         all of it as a page, figures, tables, and in the terminal

Nothing that measures or ranks knows which optimizer is ours; the report draws it bolder.
"""
