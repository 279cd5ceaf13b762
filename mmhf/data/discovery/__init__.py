"""What a stranger's files are: tables, folders, tars or a data set of the Hub, and which recipe fits them."""

from mmhf.data.discovery.draft import Means, draft_recipe
from mmhf.data.discovery.layouts import look_at

__all__ = ["Means", "draft_recipe", "look_at"]
