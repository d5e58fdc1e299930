"""The task "data": files found, read, checked row by row, and drawn from in a fixed order."""

from __future__ import annotations

from entropy_lab.train.tasks.data.load import Loaded, Reading, load_data
from entropy_lab.train.tasks.data.order import Order
from entropy_lab.train.tasks.data.source import DataSource, distinct
from entropy_lab.train.tasks.data.task import Data

__all__ = ["Data", "DataSource", "Loaded", "Order", "Reading", "distinct", "load_data"]
