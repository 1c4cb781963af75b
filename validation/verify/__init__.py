"""The command ``sgdcov verify``: real data, every rule, three layers, wrong predictions, one verdict.

================  =====================================================================
``problems``      the problems: two from scikit-learn's data, one made up not to commute
``cases``         which optimizers run on them, how long, and with which seed
``closed_form``   theory's formulas evaluated on a problem, in 30 digits
``checks``        a proof, theory against numerics, numerics against a measured run
``time_cases``    the same over time: after a drop or a start, through schedules, memory and averages, with
                  closed forms, checks, controls and a figure in ``time_...``
``minibatch_...`` the same with real minibatches: problems, cases, oracles (``closed_form``), checks, controls, results
``adversarial_``  the same under attacks: problems, cases, oracles, checks, controls, results and a figure
``questions``     every other public question: numerics, somebody else, and a run where it is cheap
``sensitivity``   what size of error a row would have caught
``controls``      predictions known to be wrong, each of which must be rejected
``result``        what was found, and the verdict
``table``         the same as a table on a terminal
``report``        the same as Markdown and JSON
``figures``       the same as pictures
``progress``      what is running, on a terminal and elsewhere
``report_folder`` the report's folder, whole or not at all
``command``       the command line
================  =====================================================================
"""

from .command import main

__all__ = ["main"]
