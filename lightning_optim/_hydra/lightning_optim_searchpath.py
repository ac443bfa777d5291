"""Makes this package's configuration groups visible in every Hydra application of the environment."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class LightningOptimSearchPathPlugin(SearchPathPlugin):
    """Appends ``conf/``: a user's own file of the same name comes first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the package's configuration folder."""
        search_path.append(provider="lightning-optim", path="pkg://lightning_optim.conf")
