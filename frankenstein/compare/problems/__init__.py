"""The package's own problems: every module in this folder that has a sequence PROBLEMS is found."""
