"""Two cells beside each other: what seeds tell, what shared questions tell, and what a peak hides.

sides      words that a person typed, to cells of runs
runs       what is known of a run, whoever wrote it; `published` fills it in for the published systems
checks     which pairs are refused, and what stays in doubt
answers    what a run was asked and answered; `questions` tests it
report     all of it together;  text: the same in tables
"""
