"""Tables of the learning commands, from a file as people have it to numbers and labels.

`opening` reads the bytes, `dialect` detects how a text table is written, `delimited`, `arff` and `formats` turn bytes
into `raw.RawTable`, `columns` turns its columns into features, `labels` its target into classes, `reading` joins them.
"""
