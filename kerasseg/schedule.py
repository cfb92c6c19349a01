"""Old home of `PlateauSchedule`, which files of version 0.1 name."""

from kerasseg.callbacks import PlateauSchedule as PlateauSchedule
