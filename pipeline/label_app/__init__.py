"""The MONAI Label app: trained bundles behind an HTTP server, for translation and for training on the studies' pairs.

Everything in here needs the extra ``label``; nothing outside imports it.
"""
