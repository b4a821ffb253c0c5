"""Many runs of the bundle, compared: what each method does, learns, and makes of misaligned pairs."""
