"""Independent executions of a release, each in its own framework or by a third party."""
