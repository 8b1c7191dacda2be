"""What TensorBoard imports at its start; a failure here would end all of TensorBoard, so it imports nothing of ours."""

from __future__ import annotations

from typing import Any

from tensorboard.plugins import base_plugin


class GradscopeLoader(base_plugin.TBLoader):
    """Loads the tab, or nothing where something it needs is missing."""

    def fix_flags(self, flags: Any) -> None:
        """Ask the data loaders to keep all steps; the user's own `--samples_per_plugin gradscope=...` wins."""
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
