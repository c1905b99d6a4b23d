"""The report: one HTML page that shows what a run made, whether it is better, and how it came about.

`write_report(folder)` reads a run folder, finished or not, and writes `report.html` into it. The page needs
nothing but itself: styles, pictures and the script that filters the failures are inline, and it asks for nothing over
the network. Without scripts all is there but the filter.
formats -> reading (files to values) -> results, verdict, samples (values to findings) -> charts -> page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

REPORT = "report.html"


def write_report(run_folder: Path, beside: Sequence[Path] = (), *, outcome: Path | None = None) -> Path:
    """Write `report.html` into a run folder and return its path; what the run has not made yet is left out.

    `beside` are folders of other runs that this one is held against, such as one without hard negatives. Where
    `outcome` names a folder, it holds manifest, recipe, results and failures, and gets the page.

    Raises InputError when the folder holds no run, or one of its files is malformed.
    """
    from medley.files import write_text
    from medley.report.page import render_report
    from medley.report.reading import read_run

    path = (outcome or run_folder) / REPORT
    run = read_run(run_folder, outcome)
    write_text(path, render_report(run, [read_run(folder) for folder in beside]))
    return path
