"""Which slice goes to which split: patients, duplicates and shares."""
