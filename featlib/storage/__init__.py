"""Paths and URLs become bytes here and nowhere else: what may be opened, whole-object puts, listings, retries.

    store = Store("s3://bucket/out")
    store.put("features/dataset=d/model=m/part-00000.parquet", data)
    with open_media("s3://videos/a.mp4") as file: ...

Importing this loads neither fsspec nor s3fs nor pyarrow; a user of local files never does.
"""

from featlib.storage.files import RangeFile
from featlib.storage.media import MediaFile, list_files, open_media, read_bytes, stat_media, write_file
from featlib.storage.objects import ObjectInfo, StoreOptions
from featlib.storage.store import Store, check_key
from featlib.storage.urls import check_url, folder_of, is_s3, resolve

__all__ = [
    "MediaFile",
    "ObjectInfo",
    "RangeFile",
    "Store",
    "StoreOptions",
    "check_key",
    "check_url",
    "folder_of",
    "is_s3",
    "list_files",
    "open_media",
    "read_bytes",
    "resolve",
    "stat_media",
    "write_file",
]
