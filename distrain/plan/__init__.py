"""The plan of a launch: options, sources, detection. Nothing here needs torch, and nothing here starts anything."""

from distrain.plan.ahead import Ahead
from distrain.plan.plan import Plan, resolve
from distrain.plan.program import Program, check_program, current_folder
from distrain.plan.sources import Setting

__all__ = ["Ahead", "Plan", "Program", "Setting", "check_program", "current_folder", "resolve"]
