"""The Ignite trainer and evaluator."""
