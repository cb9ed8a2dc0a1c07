"""Parquet shards: their schema, staging, publishing and reading."""
