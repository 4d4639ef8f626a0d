"""What the facts of many tasks tell about the people: speed, drift, copies, anchoring, repeats, splits of opinion."""

from qc_webhooks.people.portrait import Portrait, portraits
from qc_webhooks.people.splits import Split, splits

__all__ = ["Portrait", "Split", "portraits", "splits"]
