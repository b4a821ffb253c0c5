"""Causes of faults by kind: each makes a small input, runs commands on it and judges what they said and wrote."""
