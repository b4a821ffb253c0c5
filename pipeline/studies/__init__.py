"""Many runs of the bundle, compared: statistics over patients and seeds, figures and a report."""
