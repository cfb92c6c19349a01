"""Run directories: configuration, state in two generations, history, best weights."""

from kerasseg.runs.config import Resolved, RunConfig, new_config, read_config, settings_from
from kerasseg.runs.directory import RUNS, RunDirectory
from kerasseg.runs.state import SavedState, StateStore

__all__ = [
    "RUNS",
    "Resolved",
    "RunConfig",
    "RunDirectory",
    "SavedState",
    "StateStore",
    "new_config",
    "read_config",
    "settings_from",
]
