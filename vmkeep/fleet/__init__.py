"""What a fleet file declares: YAML to frozen models to a dependency graph."""
