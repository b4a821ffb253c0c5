"""Datalists, slice data sets and the digital brain phantom."""
