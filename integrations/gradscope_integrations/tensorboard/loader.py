"""TensorBoard imports this module at its start. A failure here would end TensorBoard: it imports nothing of ours."""

from __future__ import annotations

from typing import Any

from tensorboard.plugins import base_plugin


class GradscopeLoader(base_plugin.TBLoader):
    """Loads the tab, or nothing if a requirement is missing."""

    def fix_flags(self, flags: Any) -> None:
        """Make the data loaders keep all steps, unless the user sets `--samples_per_plugin gradscope=...`."""
        samples = getattr(flags, "samples_per_plugin", None)
        if isinstance(samples, dict):
            samples.setdefault("gradscope", 0)

    def load(self, context: base_plugin.TBContext) -> Any:
        """The plugin, or None."""
        try:
            from gradscope_integrations.tensorboard.plugin import GradscopePlugin
        except ImportError:
            return None
        return GradscopePlugin(context)
