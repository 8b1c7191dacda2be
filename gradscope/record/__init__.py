"""Record: rows in, frames out; in memory or in a folder of Parquet files. Loads nothing heavy until it is used."""

from gradscope.record.data import RunData
from gradscope.record.fleet import FleetData
from gradscope.record.memory import MemoryStore
from gradscope.record.parquet import ParquetStore
from gradscope.record.schema import SCHEMA_VERSION, TABLES, Table
from gradscope.record.source import Joined, Source

__all__ = [
    "SCHEMA_VERSION",
    "TABLES",
    "FleetData",
    "Joined",
    "MemoryStore",
    "ParquetStore",
    "RunData",
    "Source",
    "Table",
]
