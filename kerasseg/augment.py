"""Old home of `SafeAugmentation`, which `.keras` files of version 0.1 name."""

from kerasseg.data.augmentation import SafeAugmentation as SafeAugmentation
