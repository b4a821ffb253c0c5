"""Translators: a backbone's networks and the loss terms they are trained with."""
