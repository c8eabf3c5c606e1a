"""What travels to a node: standard library only, Python 3.9 or newer, one plan in one private directory."""

PLAN_FORMAT = 1
"""Version of the plan that this agent runs; a runner and an agent are always built together, so it is checked, not negotiated."""
