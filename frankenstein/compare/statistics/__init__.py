"""Pure functions on arrays of scores, which know nothing of what was measured.

seeds.py         one problem: scores over seeds
across.py        many problems: normalised scores, performance profiles, bootstrap over problems and seeds
significance.py  tests: wins and losses, Wilcoxon and Holm, critical differences
"""
