"""The chart's tests: what is rendered, what is refused, and the rendered containers run with real etcds."""
