"""What a package does with an input, and nothing else: no torch, no families, no data sets, no scores.

Start at `predictor` (a package opened on an engine) and follow a picture: `images` (read) → `preprocess` → `members` (the
network; `windows` where it slides) → `decode`, `bands` → `prediction` → `writers`. Volumes go the same way through
`volumes` → `volume_chain` → `volume_network` → `volume_decode` → `volume_prediction` → `volume_files`. Folders of files are
run by `batch` and `volume_batch`.

What changes an answer is read from the manifest, never decided here; each step is a pure function over arrays, held to
the library that it is named after, and written again in C++ (cpp/src, mostly under the same names).
"""
