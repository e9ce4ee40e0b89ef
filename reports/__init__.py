"""Reports: figures and pages that follow from a profile.

`events`, `memory`, `critical`, `engines`, `layers`, `hints` compute; `timeline`, `memory`, `engines`, `roofline`, `tiles`
describe figures as plain dictionaries; `sections` and `page` write `report.html`, `compare` the comparison of two runs.
Nothing here imports plotly, which takes half a second: `page.figure` does, for notebooks.
"""
