"""Many runs of the bundle, compared."""
