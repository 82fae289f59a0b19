"""Numbers about a package, each with what it was measured on: accuracy, speed, and the page that shows them.

`evaluate`, `benchmark`, `ensemble`, `inspect`, `report` are the verbs of these names and `scoring` is `score`'s; the rest
are their parts. What a score means stands in `segship.metrics`; nothing here changes an answer.
"""
