"""The noise study: a grid of methods, misalignments and seeds, run cell by cell, at any time stopped and continued."""
