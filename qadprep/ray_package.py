"""The package ray, an extra of this project, loaded with its settings."""

import os

from qadprep.errors import UserError

try:
    # Before ray is loaded: it reads them once.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Started by `uv run`, Ray would send the working folder, outputs and all, to every node and build an environment
    # there for each worker. Nodes have the package installed.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray
except ImportError as error:
    raise UserError(f"--engine ray needs the package ray ({error}); pip install 'qadprep[ray]'") from error

__all__ = ["ray"]
