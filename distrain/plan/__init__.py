"""The plan of a run: what will be launched, with the origin of every value."""

from distrain.plan.options import Plan, Program, Setting, resolve

__all__ = ["Plan", "Program", "Setting", "resolve"]
