from kerasseg_tfrecords.checks.raw_data import IntegrityReport as IntegrityReport
from kerasseg_tfrecords.checks.raw_data import check_data as check_data
from kerasseg_tfrecords.checks.shards import Verification as Verification
from kerasseg_tfrecords.checks.shards import verify as verify
from kerasseg_tfrecords.conversion.prepare import prepare as prepare
from kerasseg_tfrecords.errors import (
    BadInputError as BadInputError,
)
from kerasseg_tfrecords.errors import (
    DataError as DataError,
)
from kerasseg_tfrecords.errors import (
    KerassegError as KerassegError,
)
from kerasseg_tfrecords.errors import (
    Problem as Problem,
)
from kerasseg_tfrecords.errors import (
    UsageError as UsageError,
)
from kerasseg_tfrecords.intensity import restore as restore
from kerasseg_tfrecords.records.manifest import (
    Manifest as Manifest,
)
from kerasseg_tfrecords.records.manifest import (
    PrepareOptions as PrepareOptions,
)
from kerasseg_tfrecords.records.manifest import (
    load_manifest as load_manifest,
)
from kerasseg_tfrecords.records.record import Record as Record
from kerasseg_tfrecords.records.schema import parse_batch as parse_batch
from kerasseg_tfrecords.records.shards import read_records as read_records
from kerasseg_tfrecords.records.shards import shard_paths as shard_paths
from kerasseg_tfrecords.slices import Reading as Reading
from kerasseg_tfrecords.slices import Slice as Slice
from kerasseg_tfrecords.sources import detect as detect
from kerasseg_tfrecords.sources import read_item as read_item
from kerasseg_tfrecords.sources import source_for as source_for
from kerasseg_tfrecords.sources.base import SourceOptions as SourceOptions
from kerasseg_tfrecords.sources.tree import open_tree as open_tree
from kerasseg_tfrecords.splitting.split import (
    Shares as Shares,
)
from kerasseg_tfrecords.splitting.split import (
    split_by_group as split_by_group,
)
from kerasseg_tfrecords.splitting.split import (
    split_by_slice as split_by_slice,
)

__version__: str
