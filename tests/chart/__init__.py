"""The chart's tests: renders, refusals, and the rendered containers, which run with real etcds."""
