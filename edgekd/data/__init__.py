"""Images and labels: where they come from, how they are split, and the one preprocessing that everything shares."""

from edgekd.data.augmentation import augment
from edgekd.data.dataset import Dataset, Split, TensorSplit
from edgekd.data.load import load_data
from edgekd.data.preprocessing import Preprocessing

__all__ = ["Dataset", "Preprocessing", "Split", "TensorSplit", "augment", "load_data"]
