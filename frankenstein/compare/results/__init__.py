"""What the records say: a summary for each problem, a standing for each optimizer, a verdict; and all of it as data."""
