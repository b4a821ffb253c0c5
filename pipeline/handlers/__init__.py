"""Ignite handlers: progress, checkpoints, pictures, tables and MLflow."""
