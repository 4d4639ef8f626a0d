"""Read the options of a project from the "extra params" of its connection, as `/setup` receives them."""

from collections.abc import Iterable, Mapping
from typing import Any

from labelloop.labeling.studio.config import LabelConfig
from ml_backend.predict.protocol import ProjectOptions, check_controls, read_options
from ml_backend.studio.connect import is_same_url


def options_of(connections: Iterable[Mapping[str, Any]], url: str, config: LabelConfig | None = None) -> ProjectOptions:
    """The options of the connection to a backend; the defaults without a connection.

    Args:
        connections: Label Studio's ML backends of the project.
        url: The backend's address as Label Studio sees it.
        config: The project's label config, against which named controls are checked; None: they are not.

    Raises:
        BadRequest: The extra params cannot be used; `/setup` refuses them with the same message.
    """
    ours = (row for row in connections if is_same_url(row["url"], url))
    options = read_options(next((row.get("extra_params") for row in ours), None))
    if config is not None:
        check_controls(config, options)
    return options
