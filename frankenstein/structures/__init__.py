"""Files of structures, relaxed: what `frankenstein relax` does.

reading.py      structures from files, each with a name; what is wrong with one
calculators.py  where forces come from: Lennard-Jones, EMT, batched models, anything of ASE
descents.py     one structure on its way down, told one result after another
methods.py      who moves it: our optimizer, and ASE's
journal.py      every call on disk as it is made: nothing is computed twice
running.py      descents side by side, one call of the calculator for all
workers.py      the same in several processes
folder.py       the output folder: its settings, what has ended, its lock
outputs.py      files for the user: structures, trajectories, tables
terminal.py     progress and tables
charts.py       energy and force against calls
page.py         the report, page.html its template
session.py      all of that, in order
"""
