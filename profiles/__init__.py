"""The facts: the Plan, GPU and model profiles, the tested-configuration table."""
